"""python -m nanospec"""

from nanospec.cli.main import app

app(prog_name="nanospec")
