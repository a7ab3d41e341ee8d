"Write README.md from nbs/index.ipynb"
import html, os, re, sys
from pathlib import Path

from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from nbdev.readme_filter import doc_link

ROOT = Path(__file__).resolve().parent.parent


def fenced(text, lang=''): return f'```{lang}\n{text.strip()}\n```'


def table(page):
    "The HTML table in `page` as Markdown; the row in which pandas names the index joins the header"
    def text(o): return ' '.join(html.unescape(re.sub('<[^>]+>', ' ', o)).split()).replace('|', r'\|')
    rows = [[text(o) for o in re.findall('<t[hd].*?>(.*?)</t[hd]>', r, re.S)] for r in re.findall('<tr.*?</tr>', page, re.S)]
    if len(rows) > 1 and not any(rows[1][1:]): rows[:2] = [rows[1][:1] + rows[0][1:]]
    return '\n'.join(f'| {" | ".join(o)} |' for o in [*rows[:1], ['---']*len(rows[0]), *rows[1:]]) if rows else ''


def result(out):
    "A saved output as Markdown; pictures and warnings are for the site"
    data = out.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown']).strip()
    if any(o.startswith('image/') for o in data): return ''
    if 'text/html' in data: return table(data['text/html'])
    text = data.get('text/plain') or (out.get('text', '') if out.get('name') == 'stdout' else '')
    return '' if text.startswith(('<IPython', '<Figure')) or not text.strip() else fenced(text)


def blocks(cell):
    "The Markdown blocks of a processed cell"
    if cell.cell_type == 'markdown': return [cell.source]
    if cell.cell_type != 'code': return []
    source = '' if cell.directives.get('echo') == 'false' else '\n'.join(o for o in cell.source.splitlines() if not o.startswith('#|'))
    return ([fenced(source, 'python')] if source.strip() else []) + [result(o) for o in cell.outputs]


def linked(text, url):
    "`text` with its links to notebooks leading to their pages on the site"
    return re.sub(r'(?<=\]\()[^)\s]+', lambda m: doc_link(m[0], url), text)


def readme(cfg):
    "The text of README.md"
    procs = [o for o in FilterDefaults().procs() if o.__name__ not in ('add_links', 'insert_warning', 'exec_show_docs')]
    nb = NBProcessor(cfg.nbs_path/cfg.readme_nb, procs=procs, rm_directives='quarto', process=True).nb
    front = nb.frontmatter_
    note = f'<!-- Written by tools/readme.py from nbs/{cfg.readme_nb} -->'
    title = f'# {front["title"]}\n\n> {front["description"]}\n\n{note}'
    parts = [title, *(o.strip() for c in nb.cells for o in blocks(c))]
    return linked('\n\n'.join(filter(None, parts)), cfg.doc_url) + '\n'


@call_parse
def main(
    check:bool=False, # Write nothing; exit with 1 if README.md differs
):
    "Write README.md from nbs/index.ipynb"
    os.chdir(ROOT)
    text, path = readme(get_config()), ROOT/'README.md'
    if check:
        same = path.read_text(encoding='utf-8') == text
        sys.exit(0 if same else 'README.md is not what nbs/index.ipynb says: run python tools/readme.py')
    path.write_text(text, encoding='utf-8')
