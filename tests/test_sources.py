"Faults of downloads, archives, disks and image folders; what the catalogue promises"
import errno, gzip, hashlib, io, os, re, runpy, stat, subprocess, sys, tarfile, threading, zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import needs_data
from PIL import Image

from dlcourse.core import CourseError
from dlcourse.data import explore as E, sources as S

matplotlib.use('agg')

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@contextmanager
def server(body=BODY, cut=(), ranges=True, status=200):
    "An HTTP server on this machine; the n-th answer breaks off after `cut[n]` bytes"
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get('Range'))
            start = int(asked[-1][6:-1]) if asked[-1] and ranges else 0
            if status != 200 or start >= len(body): return self.send_error(status if status != 200 else 416)
            self.send_response(206 if asked[-1] and ranges else 200)
            self.send_header('Content-Length', str(len(body) - start))
            self.end_headers()
            n = cut[len(asked)-1] if len(asked) <= len(cut) else len(body)
            self.wfile.write(body[start:start+n])

        def log_message(self, *args): return

    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{httpd.server_port}/file.bin', asked
    finally: httpd.shutdown(); httpd.server_close(); thread.join()


def names(folder): return sorted(str(o.relative_to(folder)) for o in folder.rglob('*'))


@pytest.fixture
def nowhere():
    "An address of this machine at which nobody listens"
    with server() as (url, _): pass
    return url


# --- downloads ---

def test_download(tmp_path):
    with server() as (url, asked): assert S.download([url], tmp_path/'f', SHA).read_bytes() == BODY
    assert asked == [None] and names(tmp_path) == ['f']


def test_broken_connection_is_resumed(tmp_path):
    with server(cut=(100_000, 50_000)) as (url, asked): S.download([url], tmp_path/'f', SHA)
    assert asked == [None, 'bytes=100000-', 'bytes=150000-'] and (tmp_path/'f').read_bytes() == BODY


def test_next_call_resumes(tmp_path):
    with server(cut=(100_000, 0)) as (url, _):
        with pytest.raises(CourseError, match=r'closed after 100,000 of 300,000 bytes.*0\.1 MB are kept'): S.download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == ['f.part']
    with server() as (url, asked): S.download([url], tmp_path/'f', SHA)
    assert asked == ['bytes=100000-'] and (tmp_path/'f').read_bytes() == BODY and names(tmp_path) == ['f']


def test_server_that_cannot_resume_starts_again(tmp_path):
    (tmp_path/'f.part').write_bytes(BODY[:1000])
    with server(ranges=False) as (url, _): S.download([url], tmp_path/'f', SHA)
    assert (tmp_path/'f').read_bytes() == BODY


def test_whole_part_needs_no_more_bytes(tmp_path):
    (tmp_path/'f.part').write_bytes(BODY)
    with server() as (url, _): S.download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == ['f']


def test_bad_part_is_dropped(tmp_path):
    (tmp_path/'f.part').write_bytes(b'?'*1000)
    with server() as (url, asked): S.download([url], tmp_path/'f', SHA)
    assert asked == ['bytes=1000-', None] and (tmp_path/'f').read_bytes() == BODY


def test_tampered_file_is_removed(tmp_path):
    with server(BODY[:-1] + b'?') as (url, _), pytest.raises(CourseError, match='its SHA-256 differs'): S.download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == []


def test_next_address_is_tried(tmp_path, nowhere):
    with server(status=404) as (missing, _), server(b'other') as (wrong, _), server() as (good, _):
        assert S.download([nowhere, missing, wrong, good], tmp_path/'f', SHA).read_bytes() == BODY


def test_no_network_says_where_to_put_the_file(tmp_path, nowhere):
    with pytest.raises(CourseError) as e: S.download([nowhere, 'http://127.0.0.1:1/x'], tmp_path/'f', SHA)
    assert nowhere in str(e.value) and '127.0.0.1:1' in str(e.value) and f'put that file at {tmp_path/"f"} by hand' in str(e.value)
    assert names(tmp_path) == []


def test_wrong_file_put_by_hand(tmp_path):
    (tmp_path/'f').write_bytes(b'other')
    with pytest.raises(CourseError, match='not the file that it should be'): S.download(['http://127.0.0.1:1/x'], tmp_path/'f', SHA)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full on this system')
def test_full_disk(tmp_path):
    (tmp_path/'f.part').symlink_to('/dev/full')
    with server() as (url, _), pytest.raises(CourseError, match='No space left on device'): S.download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == []


# --- archives ---

def tar(path, *members):
    "A .tar.gz of (name, content) or of ready TarInfo"
    with tarfile.open(path, 'w:gz') as t:
        for m in members:
            if isinstance(m, tarfile.TarInfo): t.addfile(m)
            else:
                info = tarfile.TarInfo(m[0]); info.size = len(m[1])
                t.addfile(info, io.BytesIO(m[1]))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_unpack_tar_zip_and_gz(tmp_path):
    S.unpack([tar(tmp_path/'a.tar.gz', ('set/one', b'1'), ('set/sub/two', b'2'))], tmp_path/'set')
    assert (tmp_path/'set'/'sub'/'two').read_bytes() == b'2'
    (tmp_path/'x-ubyte.gz').write_bytes(gzip.compress(b'3'))
    S.unpack([tmp_path/'x-ubyte.gz'], tmp_path/'raw')
    assert names(tmp_path/'raw') == ['x-ubyte']


@pytest.mark.parametrize('member', [('../out', b''), ('/tmp/dlcourse_out', b''), ('set/../../out', b''), link('set/l', '/etc/passwd'),
                                    link('set/h', 'set/one', tarfile.LNKTYPE), link('set/dev', '', tarfile.CHRTYPE)],
                         ids=['up', 'absolute', 'inner up', 'symlink', 'hard link', 'device'])
def test_tar_member_that_escapes(tmp_path, member):
    f = tar(tmp_path/'a.tar.gz', ('set/one', b'1'), member)
    with pytest.raises(CourseError, match='a.tar.gz was not unpacked: its member'): S.unpack([f], tmp_path/'sub'/'set')
    assert names(tmp_path) == ['a.tar.gz', 'sub'] and not Path('/tmp/dlcourse_out').exists()


def test_zip_with_a_link(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        info = zipfile.ZipInfo('set/l')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, '/etc/passwd')
    with pytest.raises(CourseError, match="its member 'set/l' is a link"): S.unpack([tmp_path/'a.zip'], tmp_path/'set')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz', 'a.gz'])
def test_damaged_archive(tmp_path, name):
    (tmp_path/name).write_bytes(b'PK not really' if name == 'a.zip' else gzip.compress(BODY)[:5000])
    with pytest.raises(CourseError, match='damaged'): S.unpack([tmp_path/name], tmp_path/'set')
    assert names(tmp_path) == [name]


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(S.shutil, 'copyfileobj', full)
    with pytest.raises(CourseError, match='cannot unpack .*No space left on device'):
        S.unpack([tar(tmp_path/'a.tar.gz', ('set/one', b'1'))], tmp_path/'set')
    assert names(tmp_path) == ['a.tar.gz']


# --- fetch and load ---

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A data set of the catalogue that comes from a server on this machine; gives the server's address and its data folder"
    body = tar(tmp_path/'toy.tar.gz', ('toy/images', b'pixels'), ('toy/labels', b'classes')).read_bytes()
    (tmp_path/'toy.tar.gz').unlink()
    monkeypatch.delenv('DLCOURSE_DATA', raising=False)
    monkeypatch.setattr(S, 'fastai_data', lambda: tmp_path/'fastai'/'data')
    monkeypatch.setitem(S._readers, 'toy', lambda src, root: S.Examples(*[torch.zeros(2, 1)]*4))

    def add(url, sha=hashlib.sha256(body).hexdigest()):
        monkeypatch.setitem(S._catalogue, 'toy', S.Source('toy', 'Toy', '', (1,), ('a', 'b'), 2, 2, 'official', '', 'X (2000)', '',
                            'sets/toy', ('images', 'labels'), (S.Remote('toy.tar.gz', len(body), sha, (url,)),)))
    add.body, add.root = body, tmp_path/'fastai'/'data'
    return add


def test_load_downloads_once(toy):
    with server(toy.body) as (url, asked):
        toy(url)
        assert S.load('toy').vocab == ['a', 'b'] and S.load('toy').name == 'toy'
    assert len(asked) == 1 and names(toy.root) == ['sets', 'sets/toy', 'sets/toy/images', 'sets/toy/labels']


def test_dlcourse_data_comes_first_and_is_only_read(toy, tmp_path, monkeypatch):
    shared = tmp_path/'shared'
    monkeypatch.setenv('DLCOURSE_DATA', str(shared))
    with server(toy.body) as (url, asked):
        toy(url)
        S.load('toy')
        assert not shared.exists() and S.locate('toy') == toy.root
        S.fetch('toy', shared)
        assert S.locate('toy') == shared
    assert len(asked) == 2


def test_archive_put_by_hand_is_used_and_kept(toy, nowhere):
    toy(nowhere)
    (toy.root/'sets').mkdir(parents=True)
    (toy.root/'sets'/'toy.tar.gz').write_bytes(toy.body)
    assert S.fetch('toy') == toy.root
    assert names(toy.root/'sets') == ['toy', 'toy.tar.gz', 'toy/images', 'toy/labels']


@pytest.mark.parametrize('fault', ['tampered', 'escapes', 'no network'])
def test_failed_fetch_leaves_nothing(toy, tmp_path, nowhere, fault):
    body = tar(tmp_path/'e.tar.gz', ('../out', b'')).read_bytes() if fault == 'escapes' else toy.body
    with server(body) as (url, _):
        toy(nowhere if fault == 'no network' else url, hashlib.sha256(body).hexdigest() if fault == 'escapes' else '0'*64)
        with pytest.raises(CourseError): S.load('toy')
    assert names(toy.root) == []


def test_read_only_disk(toy, monkeypatch):
    def refuse(*args, **kw): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with server(toy.body) as (url, asked):
        toy(url)
        monkeypatch.setattr(Path, 'mkdir', refuse)
        with pytest.raises(CourseError, match='cannot write to .*Read-only file system'): S.load('toy')
    assert asked == [] and not toy.root.exists()


def test_read_only_folder_refuses_the_part(toy, monkeypatch):
    def refuse(file, mode='r', *args):
        if 'r' not in mode: raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open(file, mode, *args)
    with server(toy.body) as (url, _):
        toy(url)
        monkeypatch.setattr(S, 'open', refuse, raising=False)
        with pytest.raises(CourseError, match='cannot write .*Read-only file system'): S.load('toy')
    assert names(toy.root) == []


def test_incomplete_folder(toy):
    toy('http://127.0.0.1:1/x')
    (toy.root/'sets'/'toy').mkdir(parents=True)
    (toy.root/'sets'/'toy'/'images').touch()
    with pytest.raises(CourseError, match='incomplete, it has no labels'): S.load('toy')


def test_not_here_and_not_to_be_downloaded(toy):
    toy('http://127.0.0.1:1/x')
    with pytest.raises(CourseError, match='toy is not in .*data: put its folder sets/toy there'): S.load('toy', download=False)


def test_two_processes_download_once(toy):
    with server(toy.body) as (url, asked):
        toy(url)
        threads = [threading.Thread(target=S.fetch, args=('toy',)) for _ in range(3)]
        for t in threads: t.start()
        for t in threads: t.join(10)
    assert len(asked) == 1 and S.locate('toy') == toy.root


def test_damaged_files_name_the_folder(tmp_path):
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for f in S.source('mnist').needs: (raw/f).write_bytes(b'\0\0\x08\x03' + b'\0'*30)
    with pytest.raises(CourseError, match=f'cannot read {re.escape(str(raw))}'): S.load('mnist', tmp_path)


def test_cifar10_with_other_bytes_is_not_unpickled(tmp_path):
    folder = tmp_path/'cifar-10-batches-py'
    folder.mkdir()
    for f in S.source('cifar10').needs: (folder/f).write_bytes(b'cos\nsystem\n(S"touch hacked"\ntR.')
    with pytest.raises(CourseError, match='cannot read'): S.load('cifar10', tmp_path)
    assert not Path('hacked').exists()


# --- the catalogue ---

def test_unknown_name():
    with pytest.raises(CourseError, match="unknown data set 'cifar100'. Did you mean 'cifar10'"): S.load('cifar100')


def test_every_entry_is_whole():
    for name in S.datasets().index:
        s = S.source(name)
        assert name in S._readers and s.about and s.licence and s.home.startswith('http') and re.search(r'\((19|20)\d\d\)', s.citation)
        assert bool(s.folder) == bool(s.remotes)
        for r in s.remotes: assert re.fullmatch('[0-9a-f]{64}', r.sha256) and all(u.endswith(r.file) for u in r.urls) and len(r.urls) > 1


def test_facts_show_as_text_and_as_a_table():
    s = S.source('boston_housing')
    assert 'Black residents' in repr(s) and '| licence |' in s._repr_markdown_() and 'example: 13 numbers' in repr(s)


def test_cifar10_prefers_a_mirror():
    assert 'toronto' not in S.source('cifar10').remotes[0].urls[0] and 'toronto' in S.source('cifar10').remotes[0].urls[-1]


def test_shipped_sets_need_neither_folder_nor_network(monkeypatch, tmp_path):
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path/'none'))
    monkeypatch.setattr(S, 'urlopen', None)
    for name in ('fashion_mini', 'digits', 'boston_housing'):
        d, s = S.load(name, download=False), S.source(name)
        assert (len(d.x), len(d.x_test), tuple(d.x.shape[1:])) == (s.n_train, s.n_test, s.shape)
        assert d.x.is_contiguous() and len(d.y) == len(d.x) and len(d.y_test) == len(d.x_test)


def test_kinds():
    d, b = S.load('fashion_mini'), S.load('boston_housing')
    assert (d.x.dtype, d.y.dtype, b.x.dtype, b.y.dtype) == (torch.uint8, torch.int64, torch.float32, torch.float32)
    assert d.vocab[9] == 'Ankle boot' and b.vocab is None and b.features[11] == 'B' and len(b.features) == 13


def test_split_is_the_same_every_time():
    a, b = S.load('digits'), S.load('digits')
    assert torch.equal(a.x_test, b.x_test) and len(a.x) + len(a.x_test) == 1797
    assert (a.y_test.bincount() - 0.2*(a.y.bincount() + a.y_test.bincount())).abs().max() <= 0.5


def test_import_is_light():
    code = "import sys, dlcourse.data.sources; print([m for m in ('torchvision', 'sklearn', 'fastai.vision') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


@needs_data('MNIST/raw', 'FashionMNIST/raw', 'cifar-10-batches-py')
@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10'])
def test_equal_to_torchvision(name):
    from torchvision import datasets as tv
    cls = dict(mnist=tv.MNIST, fashion_mnist=tv.FashionMNIST, cifar10=tv.CIFAR10)[name]
    d = S.load(name, download=False)
    for x, y, train in ((d.x, d.y, True), (d.x_test, d.y_test, False)):
        ref = cls(os.environ['DLCOURSE_DATA'], train=train)
        assert x.is_contiguous() and len(x) == len(ref) and torch.equal(y, torch.as_tensor(ref.targets))
        for i in (0, 17, len(ref)-1): assert np.array_equal(np.asarray(ref[i][0]).reshape(*x.shape[2:], -1), x[i].permute(1, 2, 0))


@needs_data('FashionMNIST/raw')
def test_shipped_images_are_those_of_fashion_mnist():
    script = runpy.run_path(str(Path(__file__).parent.parent/'tools'/'make_shipped.py'))
    assert script['check']()


# --- folders of images ---

def picture(path, mode='RGB', size=(6, 4), value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ('L', 'I;16') else (value,)*len(mode)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for c in ('cat', 'dog'):
        for i in range(5): picture(tmp_path/c/f'{i}.png', value=10*i)
    return tmp_path


def test_folder_is_sorted(folder):
    d = S.image_files(folder)
    assert d.vocab == ['cat', 'dog'] and d.files == sorted(d.files) and d.y.tolist() == [0]*5 + [1]*5


def test_parts(folder):
    for part, n in (('train', 3), ('val', 2), ('test', 1)):
        for c in ('cat', 'dog'):
            for i in range(n): picture(folder/'all'/part/c/f'{i}.png')
    d = S.load_folder(folder/'all')
    assert (len(d.x), len(d.x_test), d.valid.tolist(), d.note) == (10, 2, [6, 7, 8, 9], '')
    assert d.y.tolist() == [0]*3 + [1]*3 + [0]*2 + [1]*2
    (folder/'all'/'test'/'cow').mkdir()
    with pytest.raises(CourseError, match='cow is a class that .*train does not have'): S.image_files(folder/'all')


def test_split_of_a_folder_is_said(folder):
    d = S.load_folder(folder)
    assert (len(d.x), len(d.x_test), d.vocab) == (8, 2, ['cat', 'dog']) and 'seed 42' in repr(d)


@pytest.mark.parametrize('keep', [0, 1])
def test_fewer_than_two_classes(tmp_path, keep):
    if keep: picture(tmp_path/'cat'/'0.png')
    with pytest.raises(CourseError, match=f'has {keep} class folders'): S.image_files(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(CourseError, match='none is not a folder'): S.image_files(tmp_path/'none')


def test_empty_class_folder(folder):
    (folder/'cow').mkdir()
    (folder/'cow'/'notes.txt').touch()
    with pytest.raises(CourseError, match='class folder .*cow holds no image'): S.load_folder(folder)


@pytest.mark.parametrize('content', [b'', b'not an image', 'half'])
def test_file_that_is_no_image(folder, content):
    if content == 'half':
        buf = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert('RGB').save(buf, 'jpeg')
        content = buf.getvalue()[:len(buf.getvalue())//2]
    (folder/'dog'/'bad.jpg').write_bytes(content)
    with pytest.raises(CourseError, match='dog/bad.jpg is not an image that can be read'): S.load_folder(folder)


def test_mixed_channels(folder):
    picture(folder/'cat'/'grey.png', 'L')
    with pytest.raises(CourseError, match='cat/grey.png is grey and .*png is in colour: pass channels=1 or channels=3'): S.load_folder(folder)
    assert S.load_folder(folder, channels=1).x.shape[1] == 1 and S.load_folder(folder, channels=3).x.shape[1] == 3
    with pytest.raises(CourseError, match='channels=2'): S.load_folder(folder, channels=2)


def test_mixed_sizes(folder):
    picture(folder/'dog'/'big.png', size=(9, 9))
    with pytest.raises(CourseError, match=r'has 4×6 pixels.*big.png has 9×9: pass size='): S.read_images(S.image_files(folder).files)
    assert S.load_folder(folder, size=8).x.shape[1:] == (3, 8, 8) and S.load_folder(folder, size=(4, 5)).x.shape[1:] == (3, 4, 5)


def test_modes_of_one_kind_go_together(folder):
    picture(folder/'cat'/'clear.png', 'RGBA')
    Image.new('P', (6, 4)).save(folder/'cat'/'palette.gif')
    assert S.load_folder(folder).x.shape[1:] == (3, 4, 6)


def test_sixteen_bits_are_refused(folder):
    picture(folder/'cat'/'deep.png', 'I;16')
    with pytest.raises(CourseError, match='cat/deep.png holds more than 8 bits'): S.load_folder(folder)


def test_decoded_pixels(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(a).save(tmp_path/'a.png')
    assert np.array_equal(S.read_images([tmp_path/'a.png'])[0].permute(1, 2, 0), a)
    with pytest.raises(CourseError, match='no image file'): S.read_images([])


def test_eurosat_uses_what_is_there_and_names_a_bad_image(tmp_path):
    folder = tmp_path/'eurosat'/'2750'
    for c in ('Forest', 'River'):
        for i in range(10): picture(folder/c/f'{c}_{i}.jpg', size=(64, 64), value=10*i)
    d = S.load('eurosat', tmp_path)
    assert (len(d.x), len(d.x_test), d.vocab) == (16, 4, ['Forest', 'River']) and '20 images on disk' in d.note
    (folder/'River'/'River_3.jpg').write_bytes(b'?')
    with pytest.raises(CourseError, match='River_3.jpg is not an image'): S.load('eurosat', tmp_path)


# --- explore ---

def test_stats_of_floats_and_bytes_agree():
    x = torch.randint(0, 256, (1500, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for a, b in zip(E.channel_stats(x), E.channel_stats(x/255)): torch.testing.assert_close(a, b)
    for a, b in zip(E.channel_stats(x), E.channel_stats(x.numpy())): assert torch.equal(a, b)


def test_distribution_counts_classes_without_examples():
    y, t = torch.tensor([0, 0, 2]), torch.tensor([1])
    d = S.Examples(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), y, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), t, ['a', 'b', 'c'])
    assert E.class_distribution(d).to_dict('list') == dict(train=[2, 0, 1], test=[0, 1, 0])
    assert list(E.class_distribution((d.x, y, ['a', 'b', 'c'])).columns) == ['train']


def shown(*args, **kw):
    "The pixels that `show_classes` draws"
    return np.asarray(E.show_classes(*args, **kw).images[0].get_array())


@pytest.mark.parametrize('channels', [1, 3])
def test_show_classes_fills_what_there_is(channels):
    x = torch.full((3, channels, 4, 4), 100, dtype=torch.uint8)
    a, b = (shown((o, [0, 0, 1]), n=2) for o in (x, x.double()/255))
    assert a.shape[:2] == (12, 12) and np.allclose(a, b, atol=1) and (a == 100).sum() == 3*16*channels
    assert (a[6:10, 6:10] == 255).all()


def test_shown_images_belong_to_their_row():
    x, y = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1), np.repeat(np.arange(4), 10)
    a = shown((x, y), n=5, seed=1)[::3, ::3]
    assert (a//10 == np.arange(4)[:,None]).all() and len(np.unique(a)) == 20
    assert (a == shown((x, y), n=5, seed=1)[::3, ::3]).all() and (a != shown((x, y), n=5, seed=2)[::3, ::3]).any()
