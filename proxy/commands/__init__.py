"""What the command line offers, one file per subcommand."""
