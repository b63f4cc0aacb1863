import sys

from dna_probe.cli import main

sys.exit(main())
