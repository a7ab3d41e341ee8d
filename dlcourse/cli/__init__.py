"The command line; importing it enters the commands, in the order of their help"
from dlcourse.cli import data, train, runs, studies
from dlcourse.cli.parsing import main
