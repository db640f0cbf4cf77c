"""Reports of results: tables, pictures, HTML pages and model cards."""
