"`python -m dlcourse`: the command line, where the folder of installed commands is not searched"
from dlcourse.cli import main

if __name__ == '__main__': raise SystemExit(main())
