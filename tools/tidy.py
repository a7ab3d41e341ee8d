"""Tidy the saved outputs of notebooks, after `nbdev-test --save`

    python tools/tidy.py                       every notebook
    python tools/tidy.py nbs/data/*.ipynb      these"""
import argparse, re
from pathlib import Path

from fastcore.nbio import read_nb, write_nb
from nbdev.config import get_config


def settled(text):
    "What a terminal shows of `text` in the end, bars left out: after a carriage return it writes over the line"
    def line(parts):
        shown = ''
        for o in parts: shown = o + shown[len(o):]
        return shown.rstrip()
    lines = [line(o.split('\r')) for o in text.split('\n')]
    return '\n'.join(o for o in lines if not re.search(r'\|[█-]{10,}\| +[\d.]+%', o))


def tidy(cell):
    "Leave in the outputs of `cell` what progress bars end with, and no warnings from the insides of libraries"
    for o in cell.outputs:
        if o.output_type == 'stream' and '\r' in o.text: o.text = settled(o.text)
    def keep(o): return o.output_type != 'stream' or (o.text.strip() and not (o.name == 'stderr' and 'site-packages' in o.text))
    cell.outputs = [o for o in cell.outputs if keep(o)]


def main(paths):
    "Tidy the notebooks at `paths`; all of them if none is named"
    root = get_config(Path(__file__).parent).nbs_path
    for path in paths or sorted(o for o in root.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts):
        nb = read_nb(path)
        for o in nb.cells:
            if o.cell_type == 'code': tidy(o)
        write_nb(nb, path)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', help='notebooks; all of them if none is named')
    main(parser.parse_args().notebooks)
