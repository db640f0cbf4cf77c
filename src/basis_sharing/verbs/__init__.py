"""What each verb does, one file per verb, named as on the command line."""
