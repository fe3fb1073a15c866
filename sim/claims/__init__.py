"""The claims page: what this project says about itself, measured, with the command that measures it."""
