"""The command line: main.py starts it, app.py names the commands, and each command has a file of its own."""
