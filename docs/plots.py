"""Draw the pictures of the plots' API pages by running the example of each docstring.

Run it after a change of a plot and look at each picture: ``python docs/plots.py [NAME ...]``.
"""

import sys
from doctest import DocTestParser
from pathlib import Path

import scanpy as sc
from matplotlib import pyplot as plt

from celler import pl

IMAGES = Path(__file__).parent / "images" / "plots"


def main():
    sc.settings.autoshow = False
    spaces = {}  # plots of the same model share one training
    for name in sys.argv[1:] or pl.__all__:
        *setup, call = (item.source for item in DocTestParser().get_examples(getattr(pl, name).__doc__))
        setup = "".join(setup)
        if setup not in spaces:
            exec(setup, spaces.setdefault(setup, {}))
        exec(call, spaces[setup])
        plt.gcf().savefig(IMAGES / f"{name}.png", dpi=72)
        plt.close("all")


if __name__ == "__main__":
    main()
