"""What every verb finds out, as one family of typed JSON files that every verb writes and reads."""
