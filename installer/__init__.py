"""Making and checking the trainers' environment. Standard library only: it runs before anything is installed."""
