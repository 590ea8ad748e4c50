import sys

from tests.hostile.verdicts import main

sys.exit(main(sys.argv[1:]))
