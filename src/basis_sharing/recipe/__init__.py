"""What is asked, validated once."""
