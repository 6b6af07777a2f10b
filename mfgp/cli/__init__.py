"""The command line, one module a command; `main` holds the application."""
