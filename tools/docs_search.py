"Search on the docs site: an entry for each function, and whole words before parts of words"
import json, re

RANKER = r"""// The stand-in's search: whole words first, then beginnings of words, then any part of a word
(() => {
  const words = (s) => (s || "").toLowerCase().split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
  const pieces = (s) => words(s).flatMap((w) => [w, ...w.split("_")]);
  const field = (text, q, whole, start, part) => {
    const ws = pieces(text);
    if (ws.includes(q)) return whole;
    if (ws.some((w) => w.startsWith(q))) return start;
    return q.length > 3 && (text || "").toLowerCase().includes(q) ? part : 0;
  };
  const score = (e, q) => {
    const title = (e.title || "").toLowerCase();
    const exact = title === q ? 400 : title.startsWith(q) ? 30 : 0;
    return exact + Math.max(field(e.title, q, 100, 60, 8), field(e.section, q, 80, 40, 6), field(e.text, q, 20, 10, 1));
  };
  window.Fuse = class {
    constructor(index) { this.index = index; }
    search(query, { limit = 20 } = {}) {
      const qs = words(query);
      const hits = this.index.map((item, i) => {
        const scores = qs.map((q) => score(item, q));
        return { item, i, total: scores.length && Math.min(...scores) > 0 ? scores.reduce((a, b) => a + b) : 0 };
      }).filter((h) => h.total > 0);
      return hits.sort((a, b) => b.total - a.total || a.i - b.i).slice(0, limit);
    }
  };
})();
"""


def plain(text):
    "`text` without the marks of Markdown"
    return re.sub(r'[`*]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text))


def search_entry(symbol, titles):
    "What the search finds of a function: its name, its page's title, its docstring"
    page = titles.get(symbol.page.as_posix(), symbol.module)
    return dict(objectID=symbol.href, href=symbol.href, title=symbol.name, section=page, text=plain(symbol.doc) or symbol.name)


def add_search(site, found, titles):
    "Put an entry for each function in front of the sections in `search.json`, and our order of results in place of the stand-in's"
    path = site/'search.json'
    if not path.exists(): return
    ours = [search_entry(o, titles) for o in found]
    names = {o['href'] for o in ours}
    theirs = [o for o in json.loads(path.read_text(encoding='utf-8')) if o['href'] not in names]
    path.write_text(json.dumps(ours + theirs, ensure_ascii=False), encoding='utf-8')
    if (fuse := site/'site_libs'/'fuse'/'fuse.min.js').exists(): fuse.write_text(RANKER, encoding='utf-8')
