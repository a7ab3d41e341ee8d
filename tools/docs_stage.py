"Lay out the project that Quarto or smalldocs renders: pages with their entries, links and badges, pictures, styles, the sidebar"
import html, re, shutil
from functools import partial
from pathlib import Path

import yaml
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import nbpath2html

from docs_entries import Links, entry, index_page

FIRST = ['index.ipynb', 'getting_started.ipynb', 'items.ipynb', 'glossary.ipynb']
ROOMS = {'course': 'Lessons', 'course/mac': 'MAC: plain and convolutional', 'course/mba': 'MBA: losses, optimisers, architectures',
         'course/tp1': 'TP1: CIFAR-10 and transfer', 'course/pcs': 'PCS: foundations to residual networks',
         'datasets': 'Data sets', 'data': 'Data', 'models': 'Models', 'training': 'Training', 'insight': 'Insight', 'report': 'Report',
         'cli': 'Command line'}
# How the house is built: these pages, by their plain names, and the pages of `course` that are numbered from 50 on
BUILT = ['architecture', 'how_to_add', 'course/experiment', 'course/records', 'course/reproduction', 'benchmarks']
BUILT_TITLE = 'How it is built'
PAGES, IMAGES = {'.ipynb', '.qmd', '.md'}, {'.png', '.jpg', '.jpeg', '.svg', '.gif', '.webp'}
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
FUNCTIONS = 'functions.qmd'
NUMBER = re.compile(r'[-+−]?[\d.,]+( ?[%×]|e[-+]\d+)?( ± [\d.]+)?')


def pages(nbs):
    "The pages under `nbs` in the order of their file names, as paths relative to it"
    found = (o.relative_to(nbs) for o in nbs.rglob('*') if o.suffix in PAGES)
    return sorted(o for o in found if not any(p.startswith(('.', '_')) for p in o.parts))


def plain_name(page):
    "The path of `page` without its number, the name under which Quarto writes it"
    return nbpath2html(page).with_suffix(page.suffix)


def is_built(page):
    "Does `page` say how the house is built?"
    number = re.match(r'course/(\d+)_[^/]*$', page)
    return plain_name(Path(page)).with_suffix('').as_posix() in BUILT or bool(number and int(number[1]) >= 50)


def place_in_built(page):
    "Place of `page` among those that say how the house is built; one that `BUILT` doesn't name comes last"
    name = plain_name(Path(page)).with_suffix('').as_posix()
    return [*BUILT, name].index(name)


def sidebar(nbs):
    "The sidebar's contents: the first pages, the rooms in the order of `ROOMS`, folders that it does not name, and how it is built"
    found = [o.as_posix() for o in pages(Path(nbs))]
    built = sorted(filter(is_built, found), key=place_in_built)
    top = [o for o in found if '/' not in o and o not in FIRST + built]
    def folder(page): return next((f for f in sorted(ROOMS, reverse=True) if page.startswith(f'{f}/')), page.split('/')[0])
    inside = [o for o in found if '/' in o and o not in built]
    folders = [*ROOMS, *sorted({*map(folder, inside)} - {*ROOMS})]
    sections = {ROOMS.get(f, f.replace('_', ' ').capitalize()): [o for o in inside if folder(o) == f] for f in folders}
    sections['Core and commands'] = top
    sections[BUILT_TITLE] = built
    return [o for o in FIRST if o in found] + [dict(section=k, contents=v) for k,v in sections.items() if v]


def plain_sidebar(contents):
    "`contents` of a sidebar with the numbers taken off the names of its pages"
    if isinstance(contents, str): return plain_name(Path(contents)).as_posix()
    return [dict(o, contents=plain_sidebar(o['contents'])) if isinstance(o, dict) else plain_sidebar(o) for o in contents]


def is_lesson(page):
    "Is `page` one that a student opens in Colab?"
    return page.suffix == '.ipynb' and (page.parts[0] == 'course' or page.name == 'getting_started.ipynb') and not is_built(page.as_posix())


def is_chapter(page):
    "Does `page` show its code in full, without entries?"
    return page.parts[0] == 'course' and not is_built(page.as_posix())


def colab_url(cfg, page):
    "Where Colab opens the notebook `page`"
    return f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{cfg.nbs_path.name}/{page.as_posix()}'


def add_badge(nb, url):
    "Put a Colab badge under the title of `nb`; without a caption, or Quarto makes a figure of it"
    at = next((i+1 for i,o in enumerate(nb.cells) if o.cell_type == 'raw'), 0)
    nb.cells.insert(at, mk_cell(f'[![]({BADGE}){{fig-alt="Open in Colab"}}]({url})', 'markdown'))


def plain_links(nb):
    "Let links to numbered notebooks in `nb` name the pages without their number"
    fix = partial(re.sub, r'(\]\((?!\w+:)[^)\s]*?)([^)\s/]+\.ipynb)', lambda m: m[1] + plain_name(Path(m[2])).name)
    for o in nb.cells:
        if o.cell_type == 'markdown': o.source = fix(o.source)
        for out in o.get('outputs', []):
            text = out.get('data', {}).get('text/markdown')
            if text: out['data']['text/markdown'] = fix(text if isinstance(text, str) else ''.join(text))


def drop_library_warnings(nb):
    "Take out what libraries warned of while the cells of `nb` ran"
    def keep(o): return not (o.get('name') == 'stderr' and 'site-packages' in o.text)
    for o in nb.cells:
        if o.cell_type == 'code': o.outputs = [out for out in o.outputs if keep(out)]


def drop_execution(nb):
    "Take out when a cell was run: in Quarto that cancels what the cell's own options say of its output"
    for o in nb.cells: o.get('metadata', {}).pop('execution', None)


def aligned(text):
    "An HTML table with its numbers to the right and its ids in one line"
    def cell(m):
        value = html.unescape(re.sub('<[^>]+>', '', m[2])).strip()
        if NUMBER.fullmatch(value): return f'<td class="number" style="text-align: right;">{m[2]}</td>'
        if re.fullmatch(r'(mac|mba|pcs|tp1)-[\w.]+', value): return f'<td class="id" style="white-space: nowrap;">{m[2]}</td>'
        return m[0]
    text = re.sub(r'<td( class="[^"]*")?>(.*?)</td>', cell, text, flags=re.S)
    return re.sub(r'<th>((?:mac|mba|pcs|tp1)-[\w.]+)</th>', r'<th style="white-space: nowrap;">\1</th>', text)


def align_tables(nb):
    "Put the numbers of the tables in the outputs of `nb` to the right"
    for o in nb.cells:
        for out in o.get('outputs', []):
            page = out.get('data', {}).get('text/html')
            if page: out['data']['text/html'] = aligned(page if isinstance(page, str) else ''.join(page))


def shown_name(cell):
    "The name that a cell `show_doc(name)` shows, or None"
    found = cell.cell_type == 'code' and re.fullmatch(r'(?:#\|[^\n]*\n)*show_doc\(([\w.]+)\)', cell.source.strip())
    return found[1] if found else None


def add_entries(nb, page, found, source_url):
    "Put entries where nbdev has put cells `show_doc(name)`; a chapter shows the code itself, and only an anchor"
    for o in nb.cells:
        if not (name := shown_name(o)): continue
        some = found.get(name, [])
        symbol = next((s for s in some if s.page == page), some[0] if some else None)
        o.cell_type, o.outputs = 'markdown', []
        if symbol is None: o.source = ''
        elif is_chapter(page): o.source = f'[]{{#{symbol.anchor}}}'
        else: o.source = entry(symbol, source_url)
    if is_chapter(page): unfold(nb)


def unfold(nb):
    "Show the exported code of a chapter as plain code"
    for o in nb.cells:
        if o.cell_type == 'code': o.source = o.source.replace('#| code-fold: show\n#| code-summary: "Exported source"\n', '')


def comments(cell):
    "Whether a cell after a solution goes on about it: text that asks nothing new"
    return cell.cell_type == 'markdown' and not re.search(r'\*\*Exercise|^#|^To go further', cell.source, re.M)


def fold_solutions(nb):
    "Fold a solution whole, with its results and the text on them: beside the fold, they would give the answer away"
    options, cells, is_open = r'#\| code-fold: true\n#\| code-summary: "([^"\n]+)"\n', [], False
    for o in nb.cells:
        found = re.search(options, o.source) if o.cell_type == 'code' else None
        if is_open and (found or not comments(o)):
            cells.append(mk_cell('</details>', 'markdown'))
            is_open = False
        if found:
            cells.append(mk_cell(f'<details class="code-fold">\n<summary>{found[1]}</summary>\n', 'markdown'))
            o.source, is_open = o.source.replace(found[0], ''), True
        cells.append(o)
    nb.cells = cells + [mk_cell('</details>', 'markdown')]*is_open


def link_names(nb, page, links):
    "Link the names in backticks in the text and the Markdown outputs of `nb`"
    for o in nb.cells:
        if o.cell_type == 'markdown': o.source = links.link(o.source, page)
        for out in o.get('outputs', []):
            text = out.get('data', {}).get('text/markdown')
            if text: out['data']['text/markdown'] = links.link(text if isinstance(text, str) else ''.join(text), page)


def stage_page(src, page, dest, cfg, rename, found=(), links=None):
    "Copy `page` from `src` into the project `dest`, with its entries, links and badge"
    to = dest/(plain_name(page) if rename else page)
    to.parent.mkdir(parents=True, exist_ok=True)
    if page.suffix != '.ipynb': return shutil.copy2(src/page, to)
    nb = read_nb(src/page)
    drop_library_warnings(nb)
    drop_execution(nb)
    align_tables(nb)
    by_name = {}
    for o in found: by_name.setdefault(o.name, []).append(o)
    add_entries(nb, page, by_name, f'{cfg.git_url}/blob/{cfg.branch}')
    link_names(nb, page, links or Links(found))
    fold_solutions(nb)
    if is_lesson(page): add_badge(nb, colab_url(cfg, page))
    if rename: plain_links(nb)
    write_nb(nb, to)


def stage_index(dest, found, rename):
    "Write the page of all functions into the project `dest`"
    text = index_page(found)
    if rename: text = re.sub(r'\]\(([^)#\s]+\.ipynb)', lambda m: f']({plain_name(Path(m[1])).as_posix()}', text)
    (dest/FUNCTIONS).write_text(text, encoding='utf-8')


def project_file(text, contents):
    "Quarto's project file from ours: with the sidebar, and the page of all functions in the navigation bar"
    site = yaml.safe_load(text)
    site['website']['sidebar']['contents'] = contents
    site['website']['navbar'].setdefault('left', []).append(dict(text='Functions A–Z', href=FUNCTIONS))
    return yaml.safe_dump(site, sort_keys=False, allow_unicode=True)


def stage(cache, dest, cfg, rename, root, found=(), links=None):
    "Lay out in `dest` the project that the renderer reads: processed pages, pictures, styles, and the sidebar in `_quarto.yml`"
    for o in pages(cache): stage_page(cache, o, dest, cfg, rename, found, links)
    for o in cache.rglob('*'):
        rel = o.relative_to(cache)
        if o.suffix in IMAGES|{'.css'} and rel.parts[0] != cfg.doc_path.name:
            (dest/rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(o, dest/rel)
    stage_index(dest, found, rename)
    shutil.copy2(cfg.nbs_path/'nbdev.yml', dest)
    contents = sidebar(cfg.nbs_path)
    text = project_file((root/'_quarto.yml').read_text(encoding='utf-8'), plain_sidebar(contents) if rename else contents)
    (dest/'_quarto.yml').write_text(text, encoding='utf-8')
