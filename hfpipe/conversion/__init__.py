"""Models made from models, in child processes. Import `child` for the machinery; the other modules are the children."""
