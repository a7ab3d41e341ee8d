"The data room: catalogue, downloads, folders, samples, transforms, loaders; faults and equalities that don't belong in a lesson"
import errno, gzip, hashlib, io, itertools, json, os, pickle, re, runpy, shutil, stat, struct, tarfile, threading, time
import warnings, zipfile, zlib
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_data
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import TensorImage, TensorImageBW, TensorMask
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fasttransform import Pipeline
from PIL import Image, ImageCms, ImageOps, features

from dlcourse.core import CourseError, lock_for, notice, seed_all
from dlcourse.data import decoding, download as download_module, sources
from dlcourse.names import to_disk
from dlcourse.data.arrays import Examples, as_examples
from dlcourse.data.blocks import block_for, dls_for
from dlcourse.data.catalogue import Source, catalogue
from dlcourse.data.check import check
from dlcourse.data.decoded import clear_decoded, decoded_folder, decoded_for, decoded_sets, is_whole
from dlcourse.data.download import Remote, download, unpack
from dlcourse.data.explore import channel_stats, class_distribution, show_classes
from dlcourse.data.folders import image_files, load_folder
from dlcourse.data.pictures import as_viewed, holds_more, open_picture, picture_shape
from dlcourse.data.reading import read_images
from dlcourse.data.loader import MemoryDL
from dlcourse.data.mapped import FolderStore, MappedStore
from dlcourse.data.core_sets import covering_radius, diverse, herding, k_center
from dlcourse.data.sampling import (as_labels, choose_classes, class_counts, class_number, class_weights, imbalance, imbalance_counts,
    label_noise, long_tail, n_per_class, oversample, pick, renumber, share_out, stratified_split, valid_counts)
from dlcourse.data.saved import load_set, perturb, save_images, save_set
from dlcourse.data.selection import Selection
from dlcourse.data.sources import datasets, fetch, load, locate, source
from dlcourse.data.transforms import (AtSize, BatchAffine, BatchTransform, CropFlip, RandomPosition, RandomScale, SaltAndPepper,
    affine_grid, as_range, pixel_axes, take_runs, take_window)
from dlcourse.training.learner import learner_for

matplotlib.use('agg')


def fails(words, f, *args, **kwargs):
    "`f` raises a `CourseError` of one line that has `words`"
    with pytest.raises(CourseError) as e: f(*args, **kwargs)
    assert words in str(e.value) and '\n' not in str(e.value)


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
    with server() as (url, asked): assert download([url], tmp_path/'f', SHA).read_bytes() == BODY
    assert asked == [None] and names(tmp_path) == ['f']


def test_broken_connection_is_resumed(tmp_path):
    with server(cut=(100_000, 50_000)) as (url, asked): download([url], tmp_path/'f', SHA)
    assert asked == [None, 'bytes=100000-', 'bytes=150000-'] and (tmp_path/'f').read_bytes() == BODY


def test_next_call_resumes(tmp_path):
    with server(cut=(100_000, 0)) as (url, _):
        with pytest.raises(CourseError, match=r'closed after 100,000 of 300,000 bytes.*0\.1 MB are kept'):
            download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == ['f.part']
    with server() as (url, asked): download([url], tmp_path/'f', SHA)
    assert asked == ['bytes=100000-'] and (tmp_path/'f').read_bytes() == BODY and names(tmp_path) == ['f']


def test_server_that_cannot_resume_starts_again(tmp_path):
    (tmp_path/'f.part').write_bytes(BODY[:1000])
    with server(ranges=False) as (url, _): download([url], tmp_path/'f', SHA)
    assert (tmp_path/'f').read_bytes() == BODY


def test_whole_part_needs_no_more_bytes(tmp_path):
    (tmp_path/'f.part').write_bytes(BODY)
    with server() as (url, _): download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == ['f']


def test_bad_part_is_dropped(tmp_path):
    (tmp_path/'f.part').write_bytes(b'?'*1000)
    with server() as (url, asked): download([url], tmp_path/'f', SHA)
    assert asked == ['bytes=1000-', None] and (tmp_path/'f').read_bytes() == BODY


def test_tampered_file_is_removed(tmp_path):
    with server(BODY[:-1] + b'?') as (url, _), pytest.raises(CourseError, match='its SHA-256 differs'): download([url], tmp_path/'f', SHA)
    assert names(tmp_path) == []


def test_next_address_is_tried(tmp_path, nowhere):
    with server(status=404) as (missing, _), server(b'other') as (wrong, _), server() as (good, _):
        assert download([nowhere, missing, wrong, good], tmp_path/'f', SHA).read_bytes() == BODY


def test_no_network_says_where_to_put_the_file(tmp_path, nowhere):
    with pytest.raises(CourseError) as e: download([nowhere, 'http://127.0.0.1:1/x'], tmp_path/'f', SHA)
    assert nowhere in str(e.value) and '127.0.0.1:1' in str(e.value) and f'put that file at {tmp_path/"f"} by hand' in str(e.value)
    assert names(tmp_path) == []


def test_wrong_file_put_by_hand(tmp_path):
    (tmp_path/'f').write_bytes(b'other')
    with pytest.raises(CourseError, match='not the file that it should be'): download(['http://127.0.0.1:1/x'], tmp_path/'f', SHA)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full on this system')
def test_full_disk(tmp_path):
    (tmp_path/'f.part').symlink_to('/dev/full')
    with server() as (url, _), pytest.raises(CourseError, match='No space left on device'): download([url], tmp_path/'f', SHA)
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
    unpack([tar(tmp_path/'a.tar.gz', ('set/one', b'1'), ('set/sub/two', b'2'))], tmp_path/'set')
    assert (tmp_path/'set'/'sub'/'two').read_bytes() == b'2'
    (tmp_path/'x-ubyte.gz').write_bytes(gzip.compress(b'3'))
    unpack([tmp_path/'x-ubyte.gz'], tmp_path/'raw')
    assert names(tmp_path/'raw') == ['x-ubyte']


@pytest.mark.parametrize('member', [('../out', b''), ('/tmp/dlcourse_out', b''), ('set/../../out', b''), link('set/l', '/etc/passwd'),
                                    link('set/h', 'set/one', tarfile.LNKTYPE), link('set/dev', '', tarfile.CHRTYPE)],
                         ids=['up', 'absolute', 'inner up', 'symlink', 'hard link', 'device'])
def test_tar_member_that_escapes(tmp_path, member):
    f = tar(tmp_path/'a.tar.gz', ('set/one', b'1'), member)
    with pytest.raises(CourseError, match='a.tar.gz was not unpacked: its member'): unpack([f], tmp_path/'sub'/'set')
    assert names(tmp_path) == ['a.tar.gz', 'sub'] and not Path('/tmp/dlcourse_out').exists()


def test_zip_with_a_link(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        info = zipfile.ZipInfo('set/l')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, '/etc/passwd')
    with pytest.raises(CourseError, match="its member 'set/l' is a link"): unpack([tmp_path/'a.zip'], tmp_path/'set')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz', 'a.gz'])
def test_damaged_archive(tmp_path, name):
    (tmp_path/name).write_bytes(b'PK not really' if name == 'a.zip' else gzip.compress(BODY)[:5000])
    with pytest.raises(CourseError, match='damaged'): unpack([tmp_path/name], tmp_path/'set')
    assert names(tmp_path) == [name]


def test_archive_that_holds_more_than_it_should(tmp_path):
    "Bytes are counted as they come out: of members together, and of the header of a tar, which may be large as well"
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for o in 'ab': z.writestr(o, bytes(6000))
    long = tarfile.TarInfo('x')
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 12_000
    (tmp_path/'a.tar.gz').write_bytes(gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(12_288)))
    (tmp_path/'a.gz').write_bytes(gzip.compress(bytes(12_000)))
    before = names(tmp_path)
    for o in before:
        with pytest.raises(CourseError, match=f'{o} was not unpacked: it holds far more'):
            unpack([tmp_path/o], tmp_path/'set', largest=10_000)
    assert names(tmp_path) == before


@pytest.mark.parametrize('name, content, says', [
    ('a.tar.gz', gzip.compress(bytes(10_240)), 'it holds no file'), ('a.gz', b'', 'it is empty'),
    ('a.rar', b'Rar!', 'its name must end in .zip')])
def test_archive_without_files(tmp_path, name, content, says):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(CourseError, match=f'{name} is damaged: {says}'): unpack([tmp_path/name], tmp_path/'set')


def test_download_that_brings_more_than_stated(tmp_path):
    with server() as (url, _), pytest.raises(CourseError, match='it sends more than the 99,999 bytes of that file'):
        download([url], tmp_path/'f', SHA, size=99_999)
    assert names(tmp_path) == []


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(download_module.shutil, 'copyfileobj', full)
    with pytest.raises(CourseError, match='cannot unpack .*No space left on device'):
        unpack([tar(tmp_path/'a.tar.gz', ('set/one', b'1'))], tmp_path/'set')
    assert names(tmp_path) == ['a.tar.gz']


# --- fetch and load ---

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A data set of the catalogue that comes from a server on this machine; gives the server's address and its data folder"
    body = tar(tmp_path/'toy.tar.gz', ('toy/images', b'pixels'), ('toy/labels', b'classes')).read_bytes()
    (tmp_path/'toy.tar.gz').unlink()
    monkeypatch.delenv('DLCOURSE_DATA', raising=False)
    monkeypatch.setattr(sources, 'fastai_data', lambda: tmp_path/'fastai'/'data')

    def add(url, sha=hashlib.sha256(body).hexdigest()):
        toy = Source(name='toy', title='Toy', about='', shape=(1,), vocab=('a', 'b'), n_train=2, n_test=2, split='official', license='',
                     citation='X (2000)', home='', read=lambda root: Examples(*[torch.zeros(2, 1)]*4), folder='sets/toy',
                     needs=('images', 'labels'), remotes=(Remote('toy.tar.gz', len(body), sha, (url,)),))
        monkeypatch.setitem(catalogue, 'toy', toy)
    add.body, add.root = body, tmp_path/'fastai'/'data'
    return add


def test_load_downloads_once(toy):
    with server(toy.body) as (url, asked):
        toy(url)
        assert load('toy').vocab == ['a', 'b'] and load('toy').name == 'toy'
    assert len(asked) == 1 and names(toy.root) == ['sets', 'sets/toy', 'sets/toy/images', 'sets/toy/labels']


def test_dlcourse_data_comes_first_and_is_only_read(toy, tmp_path, monkeypatch):
    shared = tmp_path/'shared'
    monkeypatch.setenv('DLCOURSE_DATA', str(shared))
    with server(toy.body) as (url, asked):
        toy(url)
        load('toy')
        assert not shared.exists() and locate('toy') == toy.root
        fetch('toy', shared)
        assert locate('toy') == shared
    assert len(asked) == 2


def test_archive_put_by_hand_is_used_and_kept(toy, nowhere):
    toy(nowhere)
    (toy.root/'sets').mkdir(parents=True)
    (toy.root/'sets'/'toy.tar.gz').write_bytes(toy.body)
    assert fetch('toy') == toy.root
    assert names(toy.root/'sets') == ['toy', 'toy.tar.gz', 'toy/images', 'toy/labels']


@pytest.mark.parametrize('fault', ['tampered', 'escapes', 'no network'])
def test_failed_fetch_leaves_nothing(toy, tmp_path, nowhere, fault):
    body = tar(tmp_path/'e.tar.gz', ('../out', b'')).read_bytes() if fault == 'escapes' else toy.body
    with server(body) as (url, _):
        toy(nowhere if fault == 'no network' else url, hashlib.sha256(body).hexdigest() if fault == 'escapes' else '0'*64)
        with pytest.raises(CourseError): load('toy')
    assert names(toy.root) == []


def test_read_only_disk(toy, monkeypatch):
    def refuse(*args, **kw): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with server(toy.body) as (url, asked):
        toy(url)
        monkeypatch.setattr(Path, 'mkdir', refuse)
        with pytest.raises(CourseError, match='cannot write to .*Read-only file system'): load('toy')
    assert asked == [] and not toy.root.exists()


def test_read_only_folder_refuses_the_part(toy, monkeypatch):
    def refuse(file, mode='r', *args):
        if 'r' not in mode: raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open(file, mode, *args)
    with server(toy.body) as (url, _):
        toy(url)
        monkeypatch.setattr(download_module, 'open', refuse, raising=False)
        with pytest.raises(CourseError, match='cannot write .*Read-only file system'): load('toy')
    assert names(toy.root) == []


def test_incomplete_folder(toy):
    toy('http://127.0.0.1:1/x')
    (toy.root/'sets'/'toy').mkdir(parents=True)
    (toy.root/'sets'/'toy'/'images').touch()
    with pytest.raises(CourseError, match='incomplete, it has no labels'): load('toy')


def test_not_here_and_not_to_be_downloaded(toy):
    toy('http://127.0.0.1:1/x')
    with pytest.raises(CourseError, match='toy is not in .*data: put its folder sets/toy there'): load('toy', download=False)


def test_two_processes_download_once(toy):
    with server(toy.body) as (url, asked):
        toy(url)
        threads = [threading.Thread(target=fetch, args=('toy',)) for _ in range(3)]
        for t in threads: t.start()
        for t in threads: t.join(10)
    assert len(asked) == 1 and locate('toy') == toy.root


def test_damaged_files_name_the_folder(tmp_path):
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for f in source('mnist').needs: (raw/f).write_bytes(b'\0\0\x08\x03' + b'\0'*30)
    with pytest.raises(CourseError, match=f'cannot read {re.escape(str(raw))}'): load('mnist', tmp_path)


def test_cifar10_with_other_bytes_is_not_unpickled(tmp_path):
    folder = tmp_path/'cifar-10-batches-py'
    folder.mkdir()
    for f in source('cifar10').needs: (folder/f).write_bytes(b'cos\nsystem\n(S"touch hacked"\ntR.')
    with pytest.raises(CourseError, match='cannot read'): load('cifar10', tmp_path)
    assert not Path('hacked').exists()


# --- the catalogue ---

def test_unknown_name():
    with pytest.raises(CourseError, match="unknown data set 'cifar100'. Did you mean 'cifar10'"): load('cifar100')


def test_every_entry_is_whole():
    for name in datasets().index:
        s = source(name)
        assert s.name == name and s.read and s.about and s.license and s.home.startswith('http')
        assert re.search(r'\((19|20)\d\d\)', s.citation)
        assert bool(s.folder) == bool(s.remotes)
        for r in s.remotes: assert re.fullmatch('[0-9a-f]{64}', r.sha256) and all(u.endswith(r.file) for u in r.urls) and len(r.urls) > 1


def test_facts_show_as_text_and_as_a_table():
    s = source('boston_housing')
    assert 'Black residents' in repr(s) and '| license |' in s._repr_markdown_() and 'example: 13 numbers' in repr(s)


def test_cifar10_prefers_a_mirror():
    assert 'toronto' not in source('cifar10').remotes[0].urls[0] and 'toronto' in source('cifar10').remotes[0].urls[-1]


def test_shipped_sets_need_neither_folder_nor_network(monkeypatch, tmp_path):
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path/'none'))
    monkeypatch.setattr(download_module, 'urlopen', None)
    for name in ('fashion_mini', 'digits', 'boston_housing'):
        d, s = load(name, download=False), source(name)
        assert (len(d.x), len(d.x_test), tuple(d.x.shape[1:])) == (s.n_train, s.n_test, s.shape)
        assert d.x.is_contiguous() and len(d.y) == len(d.x) and len(d.y_test) == len(d.x_test)


def test_kinds():
    d, b = load('fashion_mini'), load('boston_housing')
    assert (d.x.dtype, d.y.dtype, b.x.dtype, b.y.dtype) == (torch.uint8, torch.int64, torch.float32, torch.float32)
    assert d.vocab[9] == 'Ankle boot' and b.vocab is None and b.features[11] == 'B' and len(b.features) == 13


def test_split_is_the_same_every_time():
    a, b = load('digits'), load('digits')
    assert torch.equal(a.x_test, b.x_test) and len(a.x) + len(a.x_test) == 1797
    assert (a.y_test.bincount() - 0.2*(a.y.bincount() + a.y_test.bincount())).abs().max() <= 0.5


@needs_data('MNIST/raw', 'FashionMNIST/raw', 'cifar-10-batches-py')
@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10'])
def test_equal_to_torchvision(name):
    from torchvision import datasets as tv
    cls = dict(mnist=tv.MNIST, fashion_mnist=tv.FashionMNIST, cifar10=tv.CIFAR10)[name]
    d = load(name, download=False)
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
    path = Path(to_disk(str(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ('L', 'I;16') else (value,)*len(mode)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for c in ('cat', 'dog'):
        for i in range(5): picture(tmp_path/c/f'{i}.png', value=10*i)
    return tmp_path


def test_folder_is_sorted(folder):
    d = image_files(folder)
    assert d.vocab == ['cat', 'dog'] and d.files == sorted(d.files) and d.y.tolist() == [0]*5 + [1]*5


def test_parts(folder):
    for part, n in (('train', 3), ('val', 2), ('test', 1)):
        for c in ('cat', 'dog'):
            for i in range(n): picture(folder/'all'/part/c/f'{i}.png')
    d = load_folder(folder/'all')
    assert (len(d.x), len(d.x_test), d.valid.tolist(), d.note) == (10, 2, [6, 7, 8, 9], '')
    assert d.y.tolist() == [0]*3 + [1]*3 + [0]*2 + [1]*2
    (folder/'all'/'test'/'cow').mkdir()
    with pytest.raises(CourseError, match='cow is a class that .*train does not have'): image_files(folder/'all')


def test_split_of_a_folder_is_said(folder):
    d = load_folder(folder)
    assert (len(d.x), len(d.x_test), d.vocab) == (8, 2, ['cat', 'dog']) and 'seed 42' in repr(d)


@pytest.mark.parametrize('keep', [0, 1])
def test_fewer_than_two_classes(tmp_path, keep):
    if keep: picture(tmp_path/'cat'/'0.png')
    with pytest.raises(CourseError, match=f"has {keep or 'no'} class folders"): image_files(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(CourseError, match='none is not a folder'): image_files(tmp_path/'none')


def test_empty_class_folder(folder):
    (folder/'cow').mkdir()
    (folder/'cow'/'notes.txt').touch()
    with pytest.raises(CourseError, match='class folder .*cow holds no image'): load_folder(folder)


@pytest.mark.parametrize('content', [b'', b'not an image', 'half'])
def test_file_that_is_no_image(folder, content):
    if content == 'half':
        buf = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert('RGB').save(buf, 'jpeg')
        content = buf.getvalue()[:len(buf.getvalue())//2]
    (folder/'dog'/'bad.jpg').write_bytes(content)
    with pytest.raises(CourseError, match='dog/bad.jpg is not an image that can be read'): load_folder(folder)


def test_mixed_channels(folder, capsys):
    picture(folder/'cat'/'grey.png', 'L')
    with pytest.raises(CourseError, match='cat/grey.png is grey and .*png is in colour: pass channels=1 or channels=3'):
        read_images(image_files(folder).files)
    assert load_folder(folder).x.shape[1] == 3 and 'grey images (1 of 11) are read in colour' in capsys.readouterr().out
    assert load_folder(folder, channels=1).x.shape[1] == 1 and load_folder(folder, channels=3).x.shape[1] == 3
    with pytest.raises(CourseError, match='channels must be 1 or 3'): load_folder(folder, channels=2)


def test_mixed_sizes(folder, capsys):
    picture(folder/'dog'/'big.png', size=(300, 500))
    with pytest.raises(CourseError, match=r'has 4×6 pixels.*big.png has 500×300: pass size='): read_images(image_files(folder).files)
    assert load_folder(folder).x.shape[1:] == (3, 32, 32)
    assert '2 sizes, from 4×6 to 500×300 pixels (height×width): each is scaled and cut to 32×32' in capsys.readouterr().out
    assert load_folder(folder, size=8).x.shape[1:] == (3, 8, 8) and load_folder(folder, size=(4, 5)).x.shape[1:] == (3, 4, 5)


def test_modes_of_one_kind_go_together(folder):
    picture(folder/'cat'/'clear.png', 'RGBA')
    Image.new('P', (6, 4)).save(folder/'cat'/'palette.gif')
    assert load_folder(folder).x.shape[1:] == (3, 4, 6)


# --- pictures as a viewer shows them ---

SENSOR = np.zeros((16, 24, 3), np.uint8)
SENSOR[:4], SENSOR[:, :6] = 250, 120 # a bar above, another on the left


def seen(im): return np.asarray(im.convert('RGB')).astype(int)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_orientation(tmp_path, suffix, turn):
    note = Image.Exif()
    note[0x0112] = turn
    file = tmp_path/f'phone.{suffix}'
    Image.fromarray(SENSOR).save(file, exif=note, quality=95)
    want = seen(ImageOps.exif_transpose(Image.open(file)))
    assert np.abs(seen(open_picture(file)) - want).max() == 0 and picture_shape(file) == (3, *want.shape[:2])
    assert np.array_equal(seen(as_viewed(Image.open(file))), want) and np.array_equal(seen(open_picture(file.read_bytes())), want)
    assert np.array_equal(seen(as_viewed(open_picture(file))), want)
    assert np.array_equal(read_images([file])[0].permute(1, 2, 0), want)


def test_damaged_notes_of_a_camera_do_not_matter(tmp_path):
    for notes in (b'Exif\0\0?', b'Exif\0\0II*\0\xff\xff\xff\xff', b''):
        Image.fromarray(SENSOR).save(tmp_path/'a.jpg', exif=notes)
        assert open_picture(tmp_path/'a.jpg').size == (24, 16)


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
FORMS = {
    '8 bits': (lambda f: Image.fromarray(GREY).save(f'{f}.png'), GREY),
    '16 bits': (lambda f: Image.fromarray(GREY.astype(np.uint16)*257).save(f'{f}.png'), GREY),
    '16 bits in a TIFF': (lambda f: Image.fromarray(GREY.astype(np.uint16)*257).save(f'{f}.tif'), GREY),
    '16 bits, white is 0': (lambda f: Image.fromarray((255-GREY).astype(np.uint16)*257).save(f'{f}.tif', tiffinfo={262: 0}), GREY),
    '10 bits': (lambda f: Path(f'{f}.pgm').write_bytes(b'P5 16 16 1020\n' + (GREY.astype(int)*4).astype('>u2').tobytes()), GREY),
    'grey, clear in part': (lambda f: Image.merge('LA', [Image.fromarray(GREY), Image.fromarray(255*(GREY > 99).astype(np.uint8))])
                            .save(f'{f}.png'), np.where(GREY > 99, GREY, 255)),
    'one grey is clear': (lambda f: Image.fromarray(GREY).save(f'{f}.png', transparency=7), np.where(GREY == 7, 255, GREY)),
    'one grey of 16 bits is clear': (lambda f: Image.fromarray(GREY.astype(np.uint16)*257).save(f'{f}.png', transparency=7*257),
                                     np.where(GREY == 7, 255, GREY)),
    'palette': (lambda f: Image.fromarray(GREY).convert('P').save(f'{f}.png'), np.stack([GREY]*3, 2)),
    'palette, one clear': (lambda f: Image.fromarray(GREY).convert('P').save(f'{f}.png', transparency=9),
                           np.stack([np.where(GREY == 9, 255, GREY)]*3, 2)),
    'ink': (lambda f: Image.fromarray(np.stack([0*GREY, 0*GREY, 0*GREY, GREY], 2)).save(f'{f}.webp', lossless=True),
            np.stack([255 - GREY]*3, 2)),
    'CMYK': (lambda f: Image.merge('CMYK', [Image.fromarray(o) for o in (0*GREY, 0*GREY, 0*GREY, 255-GREY)]).save(f'{f}.tif'),
             np.stack([GREY]*3, 2)),
    'black and white': (lambda f: Image.fromarray(GREY > 99).save(f'{f}.png'), (GREY > 99)*255),
}


@pytest.mark.parametrize('form', FORMS)
def test_pixels_are_those_of_a_viewer(tmp_path, form):
    save, want = FORMS[form]
    save(tmp_path/'a')
    file, = tmp_path.iterdir()
    got = read_images([file])[0].numpy().transpose(1, 2, 0).squeeze().astype(int)
    assert got.shape == want.shape and np.abs(got - want).max() <= (form == '10 bits'), form
    assert picture_shape(file) == (1 if want.ndim == 2 else 3, 16, 16)
    assert as_viewed(Image.open(file)).mode == open_picture(file).mode == ('L' if want.ndim == 2 else 'RGB')


# --- the colours of a profile ---

def icc(space, tags):
    "Bytes of a small ICC profile of version 2 for pixels of `space`, such as 'RGB '"
    head, body, table = 128 + 4 + 12*len(tags), b'', struct.pack('>I', len(tags))
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name.encode() + struct.pack('>II', head + len(body), len(data))
        body += data
    kind, between = (b'prtr', b'Lab ') if space == 'CMYK' else (b'mntr', b'XYZ ')
    date = struct.pack('>6H', 2026, 1, 1, 0, 0, 0)
    about = struct.pack('>I4sI4s4s4s12s4s', head + len(body), b'test', 0x02400000, kind, space.encode(), between, date, b'acsp')
    about += bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return about + bytes(128 - len(about)) + table + body


def xyz(*v): return b'XYZ \0\0\0\0' + struct.pack('>3i', *(round(o*65536) for o in v))


GAMMA_22 = b'curv\0\0\0\0' + struct.pack('>IH', 1, 0x0233)
GAMMA_1 = b'curv\0\0\0\0' + struct.pack('>I', 0)
WHITE = dict(wtpt=xyz(.9642, 1, .8249))
# Red, green and blue of Adobe RGB and of sRGB, as light in the connection space (D50)
ADOBE = np.array([[.60974, .31111, .01947], [.20528, .62567, .06087], [.14919, .06322, .74457]])
SCREEN = np.array([[.43607, .22249, .01392], [.38515, .71687, .09708], [.14307, .06061, .71410]])
ADOBE_RGB = icc('RGB ', WHITE | {f'{k}XYZ': xyz(*o) for k,o in zip('rgb', ADOBE)} | {f'{k}TRC': GAMMA_22 for k in 'rgb'})
LINEAR_GREY = icc('GRAY', WHITE | dict(kTRC=GAMMA_1))


def screen_levels(light):
    "Bytes of sRGB for linear light from 0 to 1"
    light = np.clip(light, 0, 1)
    return (255*np.where(light <= .0031308, 12.92*light, 1.055*light**(1/2.4) - .055)).round().astype(int)


def from_adobe(rgb):
    "Bytes of sRGB for bytes of Adobe RGB, by the formula"
    return screen_levels((np.asarray(rgb)/255)**2.2 @ ADOBE @ np.linalg.inv(SCREEN))


def lab_levels(lightness, a, b):
    "Bytes of sRGB for a Lab colour, by the formula"
    y = (lightness + 16)/116
    t = np.array([y + a/500, y, y - b/200])
    return screen_levels(np.where(t > 6/29, t**3, 3*(6/29)**2*(t - 4/29)) * (.9642, 1, .8249) @ np.linalg.inv(SCREEN))


COLOURS = np.array([[(200, 90, 40), (10, 120, 60), (128, 128, 128), (255, 255, 255), (30, 30, 90)]], np.uint8)


def kept_as(im, kind, **kwargs):
    "The bytes of a file with `im`"
    out = io.BytesIO()
    im.save(out, kind, **kwargs)
    return out.getvalue()


@pytest.mark.parametrize('kind, how', [('png', {}), ('tiff', {}), ('webp', dict(lossless=True)), ('png', dict(mode='RGBA'))])
def test_colours_of_a_profile_become_those_of_a_screen(kind, how):
    im = Image.fromarray(COLOURS).convert(how.pop('mode', 'RGB'))
    file = kept_as(im, kind, icc_profile=ADOBE_RGB, **how)
    want = from_adobe(COLOURS)
    assert np.abs(want - COLOURS).max() > 20
    for got in (open_picture(file), as_viewed(Image.open(io.BytesIO(file))), as_viewed(as_viewed(Image.open(io.BytesIO(file))))):
        assert got.mode == 'RGB' and np.abs(np.asarray(got) - want).max() <= 2
    assert picture_shape(file) == (3, 1, 5)
    assert abs(np.asarray(open_picture(file, 1)).astype(int) - np.asarray(Image.fromarray(want.astype(np.uint8)).convert('L'))).max() <= 2


def test_grey_with_a_profile():
    im = Image.fromarray(np.array([[0, 55, 128, 255]], np.uint8))
    want = screen_levels(np.array([0, 55, 128, 255])/255)
    for o in (im, im.convert('LA')):
        got = open_picture(kept_as(o, 'png', icc_profile=LINEAR_GREY))
        assert got.mode == 'L' and np.abs(np.asarray(got)[0] - want).max() <= 1
    assert np.abs(np.asarray(open_picture(kept_as(im, 'png', icc_profile=ADOBE_RGB)))[0].astype(int) - (0, 55, 128, 255)).max() <= 8


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


@pytest.mark.parametrize('profile', [SRGB, b'', b'no profile', ADOBE_RGB[:300], LINEAR_GREY],
                         ids=['sRGB', 'empty', 'nonsense', 'cut', 'of grey'])
def test_a_profile_that_says_nothing_changes_nothing(profile):
    assert np.array_equal(open_picture(kept_as(Image.fromarray(COLOURS), 'png', icc_profile=profile)), COLOURS)


def test_ink_with_a_profile():
    "Four inks: what the profile says of each full one, in place of the plain cyan, magenta, yellow, black"
    steps = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + struct.pack('>9i', *(65536*np.eye(3, dtype=int)).ravel()) + bytes(range(256))*4
    lab = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    lab[0, 0, 0, 0, 0], lab[1, 0, 0, 0], lab[0, 0, 0, 1], lab[1, 1, 1, 1, 0] = 255, (140, 110, 100), (40, 128, 128), 0
    inks = icc('CMYK', WHITE | dict(A2B0=steps + lab.tobytes() + bytes(range(256))*3))
    im = Image.fromarray(np.array([[(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)]], np.uint8), 'CMYK')
    got = np.asarray(open_picture(kept_as(im, 'tiff', icc_profile=inks))).astype(int)[0]
    want = [lab_levels(*o) for o in [(100, 0, 0), (140/2.55, -18, -28), (40/2.55, 0, 0)]]
    assert np.abs(got - want).max() <= 3 and np.array_equal(as_viewed(im), np.asarray(im.convert('RGB')))


def test_lab():
    "A TIFF of Lab colours: lightness, and two numbers for the hue"
    lab = Image.fromarray(np.array([[(255, 0, 0), (137, 0, 0), (0, 0, 0)]], np.uint8), 'LAB')
    file = kept_as(lab, 'tiff')
    for got in (open_picture(file), as_viewed(Image.open(io.BytesIO(file)))):
        assert np.abs(np.asarray(got).astype(int)[0] - [[255]*3, [128]*3, [0]*3]).max() <= 1
    assert picture_shape(file) == (3, 1, 3)


def png(shape, depth, kind, rows, chunks):
    "Bytes of a PNG by hand"
    def part(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    head = part(b'IHDR', struct.pack('>IIBBBBB', *shape, depth, kind, 0, 0, 0)) + b''.join(part(k.encode(), v) for k,v in chunks.items())
    return b'\x89PNG\r\n\x1a\n' + head + part(b'IDAT', zlib.compress(b'\0' + rows)) + part(b'IEND', b'')


def number(*v): return struct.pack(f'>{len(v)}H', *v)


PNGS = {
    '2 bits, one clear': (png((4, 1), 2, 0, b'\x1b', dict(tRNS=number(1))), [0, 255, 170, 255]),
    '4 bits, one clear': (png((4, 1), 4, 0, b'\x08\xf7', dict(tRNS=number(8))), [0, 255, 255, 119]),
    '1 bit, black clear': (png((8, 1), 1, 0, b'\x55', dict(tRNS=number(0))), [255]*8),
    '16 bits in colour, one clear': (png((2, 1), 16, 2, number(10, 20, 30, 2571, 5140, 7710), dict(tRNS=number(10, 20, 30))),
                                     [[255]*3, [10, 20, 30]]),
    '16 bits of grey beside alpha': (png((3, 1), 16, 4, number(0, 65535, 30000, 65535, 9, 0), {}), [0, 117, 255]),
    'light': (png((3, 1), 8, 0, b'\0\x37\xff', dict(gAMA=struct.pack('>I', 100_000))), [0, 128, 255]),
    'light in colour': (png((1, 1), 8, 2, b'\x37\0\xff', dict(gAMA=struct.pack('>I', 100_000))), [[128, 0, 255]]),
    'usual gamma': (png((2, 1), 8, 0, b'\x37\xff', dict(gAMA=struct.pack('>I', 45_455))), [55, 255]),
    'sRGB outweighs gamma': (png((1, 1), 8, 0, b'\x37', dict(sRGB=b'\0', gAMA=struct.pack('>I', 100_000))), [55]),
    'no such gamma': (png((1, 1), 8, 0, b'\x37', dict(gAMA=bytes(4))), [55]),
}


@pytest.mark.parametrize('name', PNGS)
def test_png_by_hand(name):
    file, want = PNGS[name]
    assert np.asarray(open_picture(file))[0].tolist() == np.asarray(as_viewed(Image.open(io.BytesIO(file))))[0].tolist() == want
    assert picture_shape(file)[0] == (3 if isinstance(want[0], list) else 1)


@pytest.mark.parametrize('files, kept', [(('test/test/1.png', 'test/test/2.png'), 'test/test'), (('test/unknown/1.png',), 'test/unknown'),
    (('test1/images/1.png',), 'test1/images')])
def test_a_part_without_labels_is_left_out(tmp_path, capsys, files, kept):
    found = image_files(draw(tmp_path, *within('train'), *files))
    assert set(found.part) == {'train'} and found.vocab == ['cat', 'dog']
    assert f'left out {len(files)} images of parts without labels ({kept})' in capsys.readouterr().out


def test_copies_within_a_part_are_said(tmp_path, capsys):
    "Of the same class and of another, and none of those that only have as many bytes; each file is looked at once"
    for i,name in enumerate(('a/0', 'a/1', 'a/2', 'b/3', 'b/4')): kept_at(tmp_path/f'{name}.bmp', i)
    shutil.copy(tmp_path/'a'/'0.bmp', tmp_path/'a'/'copy.bmp')
    image_files(tmp_path)
    out = capsys.readouterr().out
    assert f"1 images are copies of one in the same part ({os.path.join('a', '0.bmp')} and {os.path.join('a', 'copy.bmp')})" in out
    assert 'in another class' not in out
    shutil.copy(tmp_path/'a'/'1.bmp', tmp_path/'b'/'1.bmp')
    image_files(tmp_path)
    pair = ' and '.join(os.path.join(o, '1.bmp') for o in 'ab')
    assert f'1 of these copies are in another class ({pair})' in capsys.readouterr().out


def kept_at(path, i):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 4), i, np.uint8)).save(path)


@pytest.mark.parametrize('content, words', [(b'\0\0\0\x18ftypheic', 'HEIC, which'), (b'version https://git-lfs.github.com', 'git lfs pull'),
    (b'<!DOCTYPE html>', 'a web page'),
    (b'II*\0\0\0', 'a TIFF that is damaged'), (b'MZ', 'damaged, or none of'), (b'', 'empty')])
def test_what_is_no_picture_is_named(tmp_path, content, words):
    (tmp_path/'a.png').write_bytes(content)
    for o in (content, tmp_path/'a.png'): fails(words, open_picture, o)


def test_first_of_several(tmp_path, capsys):
    "Pages and frames: the first one, and it is said how many files have more"
    first, second = Image.fromarray(SENSOR), Image.fromarray(255 - SENSOR)
    (tmp_path/'a').mkdir()
    for kind in ('gif', 'webp', 'png', 'tif'):
        lossless = dict(lossless=True) if kind == 'webp' else {}
        first.save(tmp_path/'a'/f'{kind}.{kind}', save_all=True, append_images=[second], **lossless)
    first.save(tmp_path/'a'/'still.png')
    first.save(tmp_path/'a'/'photo.jpg', 'MPO', save_all=True, append_images=[second])
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    assert np.abs(load_folder(tmp_path).x.numpy().transpose(0, 2, 3, 1).astype(int) - SENSOR).max() <= 60
    words = 'of 12 files hold more than one picture, as an animation does: the first one of each is read'
    assert f'8 {words}' in capsys.readouterr().out
    dls_for(tmp_path, bs=4, in_memory=False, size=(16, 24), channels=1)
    assert not [o for o in tmp_path.rglob('*') if o.is_file() and holds_more(o) != (o.suffix not in ('.jpg',) and o.stem != 'still')]


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_no_white_is_known_of_32_bits(tmp_path, dtype):
    Image.fromarray(GREY.astype(dtype)).save(tmp_path/'a.tif')
    fails('a.tif is not an image that can be read (it has 32 bits a pixel', open_picture, tmp_path/'a.tif')
    fails('32 bits a pixel', as_viewed, Image.fromarray(GREY.astype(dtype)))


def broken(folder):
    "Every kind of faulty file, by name"
    half = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(half, 'png')
    made = {'empty.png': b'', 'html.jpg': b'<html>404</html>', 'eps.png': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
            'half.png': half.getvalue()[:900], 'wmf.bmp': b'\xd7\xcd\xc6\x9a' + bytes(40)}
    for name, data in made.items(): (folder/name).write_bytes(data)
    Image.new('1', (20_000, 9_500)).save(folder/'bomb.tif')
    (folder/'gone.png').symlink_to(folder/'nothing')
    (folder/'itself.png').symlink_to(folder/'itself.png')
    if hasattr(os, 'mkfifo'): os.mkfifo(folder/'pipe.gif')
    return sorted(o.name for o in folder.iterdir())


def test_one_message_names_all_faulty_files(folder, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    monkeypatch.setattr('subprocess.Popen', lambda *a, **k: pytest.fail('a program was started'))
    good = {'0.png', '1.png', '2.png', '3.png', '4.png'}
    bad = set(broken(folder/'cat')) - good
    for f in (lambda: load_folder(folder), lambda: dls_for(folder, bs=4),
              lambda: dls_for(folder, bs=4, in_memory=False, size=4, channels=3),
              lambda: read_images(image_files(folder).files, size=4, channels=3)):
        with pytest.raises(CourseError, match=rf'{len(bad)} of {len(bad)+10} files') as e: f()
        assert all(f'cat/{o} is not an image that can be read (' in str(e.value) for o in bad) and '\n' not in str(e.value)
        assert not any(f'/{o} ' in str(e.value) for o in good)
    for o in bad: fails(f'{o} is not an image that can be read', open_picture, folder/'cat'/o)
    fails('a pipe or a device', open_picture, '/dev/zero')


def test_file_that_breaks_in_training_is_named_with_the_others(folder):
    dls = dls_for(folder, bs=4, in_memory=False, normalize=False)
    for o in ('cat/1.png', 'dog/1.png'): (folder/o).write_bytes((folder/o).read_bytes()[:50])
    with pytest.raises(CourseError, match='(?s)2 of 10 files.*cat/1.png is.*dog/1.png is'):
        for dl in dls.loaders: list(dl)


# --- what folders mean ---

def draw(root, *names):
    for o in names: picture(root/o)
    return root


def within(*folders): return [f'{o}/{c}/{i}.png' for o in folders for c in ('cat', 'dog') for i in range(5)]


def sizes(root):
    d = image_files(root)
    return d.vocab, [int((d.part == o).sum()) for o in ('train', 'valid', 'test')]


PARTS = {('Training', 'Testing'): (10, 0, 10), ('Train', 'Valid', 'Test'): (10, 10, 10), ('TRAIN', 'VAL', 'TEST'): (10, 10, 10),
         ('seg_train', 'seg_test'): (10, 0, 10), ('train', 'validation'): (10, 10, 0), ('train', 'dev', 'test'): (10, 10, 10),
         ('train_set', 'test_set'): (10, 0, 10), ('trainset', 'testset'): (10, 0, 10), ('TrainData', 'TestData'): (10, 0, 10),
         ('treino', 'validação', 'teste'): (10, 10, 10), ('cats_train', 'cats_test'): (10, 0, 10), ('01_train', '02_test'): (10, 0, 10),
         ('seg_train/seg_train', 'seg_test/seg_test'): (10, 0, 10), ('photos/train', 'photos/test'): (10, 0, 10), ('train',): (10, 0, 0),
         ('x_train', 'test'): (10, 0, 10), ('train_v2', 'final_test'): (10, 0, 10), ('dados de treino', 'conjunto de teste'): (10, 0, 10),
         ('x/y/train', 'x/y/tests'): (10, 0, 10), ('train/images', 'test/images'): (10, 0, 10), ('train', 'development'): (10, 10, 0)}


@pytest.mark.parametrize('folders', PARTS, ids='-'.join)
def test_names_of_parts(tmp_path, folders):
    assert sizes(draw(tmp_path, *within(*folders))) == (['cat', 'dog'], [*PARTS[folders]])


@pytest.mark.parametrize('files, vocab', [
    (('bus/1.png', 'car/1.png', 'train/steam/1.png', 'train/electric/1.png'), ['bus', 'car', 'train']),
    (('bus/1.png', 'car/1.png', 'train/1.png'), ['bus', 'car', 'train']), (('cat/1.png', 'test/1.png'), ['cat', 'test']),
    (('trains/1.png', 'training shoes/1.png'), ['training shoes', 'trains']), (('test/a/1.png', 'x/1.png'), ['test', 'x'])])
def test_classes_that_are_called_as_parts_are(tmp_path, files, vocab): assert image_files(draw(tmp_path, *files)).vocab == vocab


@pytest.mark.parametrize('files, words', [
    (('train/1.png', 'test/1.png'), 'no training part with a folder for each class'),
    ((*within('Testing'), *within('valid')), 'no training part'), (within('train', 'extra'), 'may hold the parts train, or the classes'),
    ((*within('train'), 'images/1.png'), 'may hold the parts train, or the classes'),
    ((*within('train'), 'test/cow/1.png'), 'none of the folders in'), ((*within('train', 'test'), 'test/cow/1.png'), 'cow is a class that'),
    (('cat/1.png',), 'at least two are needed'),
    (('1.png', '2.png'), 'no class folders, but 2 images beside each other: at least two are needed'),
    (('a/.x/1.png', 'b/1.png'), 'a holds no image'), (within('fit', 'test'), 'parts test, or the classes fit, test, each with the folders'),
    (within('train', 'train_masks', 'test'), 'may hold the parts'), (within('train', 'eval'), 'call them train, valid and test'),
    (('cat/train/1.png', 'cat/test/1.png', 'dog/train/1.png', 'dog/test/1.png'), 'the parts test, train within each class')])
def test_folders_of_two_meanings_and_of_none(tmp_path, files, words): fails(words, image_files, draw(tmp_path, *files))


def test_all_that_is_left_out_is_counted(tmp_path, capsys):
    hidden = ['cat/.ipynb_checkpoints/1.png', '__MACOSX/cat/1.png', 'dog/x/.thumbnails/1.png', 'dog/@eaDir/1.png', '.git/1.png',
              'cat/._1.png']
    draw(tmp_path, *within('.'), *hidden, '3.png', 'cat/6.JFIF.png')
    for o in ('cat/Thumbs.db', 'dog/.DS_Store', 'cat/a.heic', 'cat/b.HEIC', 'dog/notes.txt', 'dog/raw', 'read me.md'): (tmp_path/o).touch()
    (tmp_path/'dog'/'loop').symlink_to(tmp_path)
    (tmp_path/'again').symlink_to(tmp_path)
    (tmp_path/'dog'/'mine').symlink_to('mine')
    assert sizes(tmp_path) == (['cat', 'dog'], [11, 0, 0])
    said = capsys.readouterr().out
    for o in ('5 hidden folders', '3 hidden files', '1 .txt files (notes.txt)', '2 .heic files, which Pillow cannot read',
              '1 images outside', '1 files outside of class folders (read me.md)', '2 files without an ending (mine, raw)',
              '2 links that lead back (again, loop)'):
        assert o in said, (o, said)


def test_parts_leave_other_folders_out(tmp_path, capsys):
    draw(tmp_path, *within('seg_train', 'seg_test'), 'seg_pred/1.png', 'seg_pred/2.png')
    assert sizes(tmp_path) == (['cat', 'dog'], [10, 0, 10])
    assert '2 images in folders that are neither parts nor classes (seg_pred)' in capsys.readouterr().out


@pytest.mark.parametrize('files, words', [
    (('train/cat/1.png', 'train/dog/2.png', 'test/cat/3.png', 'test/dog/4.png'), '2 images are in two parts alike (train/cat/1.png'),
    (('train/cat/1.png', 'train/dog/2.png', 'valid/cat/5.png'), 'the validation part has no images of dog'),
    (('train/cat/1.png', 'train/dog/2.png', 'training/cat/3.png', 'training/dog/4.png'), 'training part is in train, training together')])
def test_what_is_odd_about_parts_is_said(tmp_path, files, words, capsys):
    "The picture 3 is a copy of 1, and 4 of 2"
    for i,f in enumerate(files):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 40*(int(f[-5]) % 2) + (100 if '5' in f else 0), np.uint8)).save(tmp_path/f)
    image_files(tmp_path)
    assert words in capsys.readouterr().out


def test_one_picture_a_class_says_what_is_too_few(tmp_path):
    for o in 'abc': draw(tmp_path, f'{o}/1.png')
    fails('of 3 images for validation', dls_for, tmp_path, bs=1)
    fails('would have none for', dls_for, (np.random.rand(40, 5), range(40)))


def test_links_are_followed(tmp_path):
    root = draw(tmp_path/'set', 'cat/1.png', 'cat/2.png')
    draw(tmp_path, 'elsewhere/1.png', 'elsewhere/in/2.png')
    (root/'dog').symlink_to(tmp_path/'elsewhere')
    (root/'cat'/'3.png').symlink_to(tmp_path/'elsewhere'/'1.png')
    (tmp_path/'elsewhere'/'in'/'up').symlink_to(root/'dog')
    assert sizes(root) == (['cat', 'dog'], [5, 0, 0])
    (tmp_path/'short').symlink_to(root)
    assert sizes(tmp_path/'short') == sizes(root) and load_folder(tmp_path/'short').name == 'short'


def test_accents_and_case(tmp_path):
    long, short = 'cafe\u0301', 'caf\u00e9'
    draw(tmp_path, *[f'train/{o}/1.png' for o in (short, 'no tumor')], *[f'test/{o}/1.png' for o in (long, 'No_Tumor')])
    assert sizes(tmp_path) == ([short, 'no tumor'], [2, 0, 2])
    draw(tmp_path, *[f'both/{o}.png' for o in (f'{long}/1', f'{short}/2', 'tea/1')])
    assert sizes(tmp_path/'both') == ([short, 'tea'], [3, 0, 0])


@pytest.mark.parametrize('suffix', ['jfif', 'JPG', 'avif', 'webp', 'bmp', 'tiff', 'gif', 'ppm', 'jp2', 'jpe'])
def test_endings(tmp_path, suffix):
    if suffix == 'avif' and not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    form = {'jfif': 'jpeg', 'JPG': 'jpeg', 'jp2': 'jpeg2000', 'jpe': 'jpeg'}.get(suffix, suffix)
    for c in 'ab':
        (tmp_path/c).mkdir()
        Image.new('RGB', (8, 8), (200, 0, 0)).save(tmp_path/c/f'x.{suffix}', format=form)
    assert load_folder(tmp_path).x.float().mean((0, 2, 3)).sub(torch.tensor([200., 0, 0])).abs().max() < 9


def test_numbers_as_names(tmp_path):
    root = draw(tmp_path, *[f'{i}/{k}.png' for i in range(12) for k in range(4)])
    names = sorted(map(str, range(12)))
    fails("class 2 may be the one named '2' or the one with the number 2, '10'", dls_for, root, bs=4, classes=[2, 3])
    assert list(dls_for(root, bs=4, classes=['2', '3']).vocab) == ['2', '3'] and class_number(11, ['10', '11']) == 1
    assert class_number(0, names) == 0 and class_number('7', names) == names.index('7')


def test_a_word_for_a_set_and_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(draw(tmp_path, *[f'{o}/{c}/{i}.png' for o in ('digits', 'photos') for c in ('mine', 'yours') for i in range(5)]))
    notice.cache_clear()
    assert len(dls_for('digits').vocab) == 10 and "for the folder of that name pass './digits'" in capsys.readouterr().out
    for o in ('./digits', Path('digits'), 'photos', tmp_path/'photos'): assert list(dls_for(o, bs=2).vocab) == ['mine', 'yours']
    (tmp_path/'photos.zip').touch()
    for o in ('photos.zip', 'none/at/all', Path('none'), '~nobody-here/x'): fails('is not a folder', dls_for, o)
    fails('must be a name, a folder or arrays', dls_for, 'x'*300)
    for o in ('', 'photo'): fails('unknown data set', dls_for, o)


def test_test_part_of_a_folder(folder, capsys):
    notice.cache_clear()
    learn = learner_for('mlp', data=folder, bs=2)
    assert len(learn.dls.loaders) == 3 and 'no test folder: 20 % of each class kept for the test' in capsys.readouterr().out
    with learn.quiet(): assert len(learn.validate(ds_idx=2)) == 2
    d = load_folder(folder)
    assert learn.dls[2].dataset.items.tolist() == [8, 9] and learn.dls.test.store.parts[1][0].equal(d.x_test)
    assert [len(o.dataset) for o in dls_for(folder, bs=2, valid='test').loaders] == [8, 2]
    named = dls_for(folder, bs=2, valid=[0, 9])
    assert len(named.loaders) == 2
    fails('no separate test set', learner_for('mlp', named).validate, ds_idx=2)
    assert len(list(iter(named))) == 2


def test_few_images_and_several_kinds_train_at_once(tmp_path, capsys):
    for i, c in enumerate('ab'):
        for k in range(6): picture(tmp_path/c/f'{k}.png', 'L' if k == 2 else 'RGB', (20 + 5*k, 30 + i), value=40*k)
    notice.cache_clear()
    learn = learner_for('squeezenet1_1', data=tmp_path, pretrained=False)
    assert learn.dls.bs == 2 and learn.dls.one_batch()[0].shape[1:] == (3, 32, 32)
    said = capsys.readouterr().out
    assert all(o in said for o in ('batches of 2', '12 sizes', 'the grey images (2 of 12)', '20 %')), said
    fails('larger than the', dls_for, tmp_path, bs=32)


def test_labels_of_new_files(folder, tmp_path_factory):
    learn, new = learner_for('mlp', data=folder, bs=2), tmp_path_factory.mktemp('new')
    draw(new, 'Cat/1.png', 'dog/far/away/2.png', '3.png')
    files = [new/'Cat'/'1.png', str(new/'dog'/'far'/'away'/'2.png')]
    dl = learn.dls.test_dl(files, with_labels=True)
    assert dl.one_batch()[1].tolist() == [0, 1]
    with learn.quiet(): assert len(learn.validate(dl=dl)) == 2
    fails('3.png lies in no folder that is named as a class', learn.dls.test_dl, [*files, new/'3.png'], with_labels=True)
    pair = [files[0], np.zeros((4, 6, 3), 'u1')]
    fails('item 1 must be a file in a folder named as its class', learn.dls.test_dl, pair, with_labels=True)
    assert len(learn.dls.test_dl([*files, new/'3.png']).dataset) == 3
    with pytest.raises(CourseError, match='with dls_for'): learn.dls.test_dl((np.zeros((2, 4, 6, 3), 'u1'), np.zeros(2)), with_labels=True)
    assert len(learn.dls.test_dl(memoryview(np.zeros((5, 4, 6, 3), 'u1'))).dataset) == 5


def test_every_way_reads_alike(tmp_path):
    for c, add in (('dark', 0), ('light', 150)):
        for i in range(10):
            file = tmp_path/'set'/c/f'{i}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((GREY//3 + add).astype(np.uint16)*257).save(file)
    memory, files = dls_for(tmp_path/'set', bs=4), dls_for(tmp_path/'set', bs=4, in_memory=False)
    a, b = (o.valid.one_batch()[0].as_subclass(torch.Tensor) for o in (memory, files))
    assert torch.allclose(a, b, atol=1e-5) and a.shape[1] == 1
    x = [dls.test_dl([o]).one_batch()[0].as_subclass(torch.Tensor) for dls in (memory, files)
         for o in (file, str(file), file.read_bytes(), Image.open(file), np.asarray(open_picture(file)))]
    assert all(torch.allclose(o, x[0], atol=1e-5) for o in x)
    assert as_examples(([Image.open(file)]*4, [0, 1]*2)).x.equal(read_images([file]*4))


def test_decoded_pixels(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(a).save(tmp_path/'a.png')
    assert np.array_equal(read_images([tmp_path/'a.png'])[0].permute(1, 2, 0), a)
    with pytest.raises(CourseError, match='no image file'): read_images([])


def test_eurosat_uses_what_is_there_and_names_a_bad_image(tmp_path):
    folder = tmp_path/'eurosat'/'2750'
    for c in ('Forest', 'River'):
        for i in range(10): picture(folder/c/f'{c}_{i}.jpg', size=(64, 64), value=10*i)
    d = load('eurosat', tmp_path)
    assert (len(d.x), len(d.x_test), d.vocab) == (16, 4, ['Forest', 'River']) and '20 images on disk' in d.note
    (folder/'River'/'River_3.jpg').write_bytes(b'?')
    with pytest.raises(CourseError, match='River_3.jpg is not an image'): load('eurosat', tmp_path)


# --- explore ---

def test_stats_of_floats_and_bytes_agree():
    x = torch.randint(0, 256, (1500, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for a, b in zip(channel_stats(x), channel_stats(x/255)): torch.testing.assert_close(a, b)
    for a, b in zip(channel_stats(x), channel_stats(x.numpy())): assert torch.equal(a, b)


def test_distribution_counts_classes_without_examples():
    y, t = torch.tensor([0, 0, 2]), torch.tensor([1])
    d = Examples(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), y, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), t, ['a', 'b', 'c'])
    assert class_distribution(d).to_dict('list') == dict(train=[2, 0, 1], test=[0, 1, 0])
    assert list(class_distribution((d.x, y, ['a', 'b', 'c'])).columns) == ['train']


def shown(*args, **kw):
    "The pixels that `show_classes` draws"
    return np.asarray(show_classes(*args, **kw).images[0].get_array())


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


# --- arrays of any kind ---

bytes8 = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8)).astype(np.uint8)
bytes8[0, 0, 0, 0] = 255
rows5 = np.random.default_rng(1).normal(size=(30, 5))
three = np.arange(30) % 3
names3 = np.array(['ant', 'bee', 'cat'])[three]
frame = pd.DataFrame(rows5, columns=list('abcde'))


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def mapped(folder):
    a = np.memmap(folder/'a.bin', dtype=np.uint8, mode='w+', shape=bytes8.shape)
    a[:] = bytes8
    a.flush()
    return np.memmap(folder/'a.bin', dtype=np.uint8, mode='r', shape=bytes8.shape)


SAME_IMAGES = {
    'floats to 1': bytes8/255, 'float16': (bytes8/255).astype('f2'), 'floats to 255': bytes8.astype('f4'), 'int64': bytes8.astype(int),
    '16 bits': bytes8.astype('u2')*257, 'big-endian': bytes8.astype('>u2')*257, 'channels last': bytes8.transpose(0, 2, 3, 1),
    'no channels': bytes8[:, 0], 'backwards': bytes8[::-1, :, ::-1][::-1, :, ::-1], 'read-only': read_only(bytes8), 'list': list(bytes8),
    'tensors': [torch.tensor(o) for o in bytes8], 'gradient': torch.tensor(bytes8/255, requires_grad=True),
    'bfloat16': torch.tensor(bytes8).bfloat16(), 'pictures': [Image.fromarray(o[0]) for o in bytes8], 'objects': bytes8.astype(object),
    '16-bit pictures': [Image.fromarray(o[0].astype('u2')*257) for o in bytes8], 'nested lists': bytes8.tolist(),
}


@pytest.mark.parametrize('kind', SAME_IMAGES)
def test_images_of_every_kind_are_the_same_images(kind):
    x = SAME_IMAGES[kind]
    ex = as_examples((x, three, x[:9], three[:9]))
    assert torch.equal(ex.x, torch.tensor(bytes8)) and torch.equal(ex.x_test, ex.x[:9]) and ex.x.is_contiguous()


def test_a_mapped_file_stays_on_disk(tmp_path):
    x = mapped(tmp_path)
    with warnings.catch_warnings(): warnings.simplefilter('error'); dls = dls_for((x, three), bs=5)
    assert dls.train.store.parts[0][0].data_ptr() == x.ctypes.data and torch.isfinite(dls.one_batch()[0]).all()


SAME_LABELS = {
    'int8': three.astype('i1'), 'uint16': three.astype('u2'), 'uint64': three.astype('u8'), 'big-endian': three.astype('>i8'),
    'column': three[:, None],
    'backwards': three[::-1].copy()[::-1], 'from 1': three + 1, 'text': names3, 'bytes': names3.astype('S'),
    'list of text': names3.tolist(),
    'Series': pd.Series(three, index=range(30, 0, -1)), 'Int64': pd.Series(three, dtype='Int64'), 'table': pd.DataFrame(dict(y=three)),
    'string': pd.Series(names3, dtype='string'), 'categories': pd.Categorical(names3, ['ant', 'bee', 'cat', 'dog']),
    'objects': three.astype(object),
    'one-hot': np.eye(3)[three], 'one-hot tensor': torch.eye(3, dtype=torch.int64)[three], 'dummies': pd.get_dummies(pd.Series(names3)),
    'tensors': list(torch.tensor(three)), 'uint8 text': np.array(['10', '9', '2'])[2 - three],
}


@pytest.mark.parametrize('kind', SAME_LABELS)
def test_labels_of_every_kind_are_the_same_labels(kind):
    y = SAME_LABELS[kind]
    y_test = y.iloc[:9] if hasattr(y, 'iloc') else y[:9]
    ex = as_examples((bytes8, y, bytes8[:9], y_test))
    assert ex.y.tolist() == three.tolist() and ex.y_test.tolist() == three[:9].tolist() and len(ex.vocab) == 3
    named = {'from 1': '123', 'uint8 text': ['2', '9', '10']}
    if isinstance(y, pd.Categorical) or kind in ('text', 'dummies', 'string', 'bytes'): named[kind] = ['ant', 'bee', 'cat']
    assert kind not in named or ex.vocab == list(named[kind])


def test_true_and_false_are_two_classes():
    ex = as_examples((rows5, three > 0))
    assert ex.vocab == ['False', 'True'] and ex.y.tolist() == (three > 0).tolist()
    assert as_examples((rows5, three > 0, ['no', 'yes'])).vocab == ['no', 'yes']


class OtherTable:
    "A table with the ways of polars"
    def __init__(self, df): self.df, self.columns, self.shape = df, list(df.columns), df.shape
    def __getitem__(self, name): return self.df[name].to_numpy()
    def __len__(self): return len(self.df)
    def __array__(self, dtype=None, copy=None): return self.df.to_numpy()


NAMED_ROWS = [OtherTable, lambda df: df.to_records(index=False), lambda df: df.to_dict('records'),
    lambda df: list(df.itertuples(index=False)), lambda df: [df.iloc[i] for i in range(len(df))]]


@pytest.mark.parametrize('table', NAMED_ROWS, ids=range(5))
def test_columns_of_every_table_are_found_by_name(readers, table):
    turned = table(frame[list('edcba')])
    ex = as_examples((table(frame), three, turned, three))
    assert torch.equal(ex.x, ex.x_test) and ex.features == list('abcde')
    expected = readers['table'].test_dl(range(30)).one_batch()[0]
    assert torch.allclose(readers['table'].test_dl(turned).one_batch()[0], expected, atol=1e-6)
    assert torch.allclose(readers['table'].test_dl([table(frame[list('edcba')][3:4])[0]] if table is not OtherTable else
                                                   [table(frame[list('edcba')][3:4])]).one_batch()[0], expected[3:4], atol=1e-6)


def test_columns_whose_names_are_numbers_are_found_by_number():
    plain = pd.DataFrame(rows5)
    mixed, turned = plain[[3, 1, 0, 4, 2]], plain.iloc[:, ::-1]
    for a,b in [(plain, mixed), (mixed, plain), (plain, turned), (turned, plain), (rows5, mixed)]:
        ex = as_examples((a, three, b, three))
        assert torch.equal(ex.x, ex.x_test)
    later = plain.iloc[:, 2:]
    assert torch.equal(as_examples((later, three, rows5[:, 2:], three)).x_test, as_examples((later, three, later, three)).x)


def test_the_order_of_listed_classes_counts_and_text_columns_are_named():
    Enum = type('Enum', (), dict(categories=['c', 'b', 'a']))
    column = type('Column', (), dict(dtype=Enum(), to_numpy=lambda self: np.array(list('abc'))[three], __array__=
                                     lambda self, dtype=None, copy=None: self.to_numpy(), shape=(30,), __len__=lambda self: 30))()
    assert as_examples((rows5, column)).vocab == ['c', 'b', 'a']
    fails("in the columns 'day'", as_examples, (OtherTable(frame.assign(day=pd.Timestamp('2020-01-01'))), three))
    ex = as_examples((rows5, ['\udc80', 'b', 'c']*10))
    assert ex.vocab == [r'\x80', 'b', 'c'] == dls_for(ex, classes=['\udc80', 'b', 'c']).vocab
    assert class_number('\udc80', ex.vocab) == 0


@pytest.mark.parametrize('x', [rows5, rows5.astype('>f4'), rows5.astype(object), rows5.tolist(), list(rows5),
    frame, torch.tensor(rows5).to_sparse(),
    torch.tensor(rows5, requires_grad=True), read_only(rows5), np.asfortranarray(rows5), frame.astype('Float64'),
    frame.set_index('a', drop=False)],
    ids=range(12))
def test_rows_of_every_kind_are_the_same_rows(x):
    ex = as_examples((x, three, x, three))
    assert torch.allclose(ex.x, torch.tensor(rows5).float()) and ex.x.dtype == torch.float32 and torch.equal(ex.x, ex.x_test)


BAD_ARRAYS = [
    ((bytes8, None), 'y must be an array'), ((bytes8, three[:-1]), '30 images but 29 labels'), ((three, bytes8), 'are x and y swapped'),
    ((rows5, three*10**9), 'names of classes (y.astype(str)) or numbers to predict (y.astype(float))'), ((rows5, three*2),
    'names of classes'),
    ((rows5, three - 1), "-1, which may mean 'no label' or name a class"), ((rows5, np.full(30, np.nan)),
    'no label (NaN, None or empty text) for 30 of 30'),
    ((rows5, [None, *names3[1:]]), 'for 1 of 30 examples, the first is 0'), ((rows5, np.full(30, np.inf)), 'y must hold finite numbers'),
    ((rows5, ['a', 1]*15), 'got int and str'), ((rows5, three*1j), 'got complex128'), ((rows5, pd.date_range('2020', periods=30)),
    'got dates'),
    ((rows5, np.full((30, 3), 1/3)), 'several numbers for each example'), ((rows5, np.ones((30, 3))), 'several classes for one example'),
    ((rows5*1j, three), 'x must hold numbers, got complex128'), ((rows5*np.nan, three), 'got NaN: 30 of 30 rows'), ((rows5*1e300, three),
    'in 32 bits'),
    ((frame.assign(z=[np.inf] + [0]*29), three), 'got infinity: 1 of 30 rows are not finite, the first is row 0, column z'),
    ((frame.assign(city='Faro'), three), "in the columns 'city'"), ((frame, pd.Series(three).sample(30, random_state=1)),
    'row by row or by their index'),
    ((np.c_[1.7e9 + np.arange(30), rows5], three), 'subtract its mean first'), ((bytes8/127.5 - 1, three), 'undo their normalisation'),
    ((bytes8/16, three), 'on a scale of their own or nearly black'), ((bytes8.astype('u2')*16, three),
    'fewer than 16 bits or dark images of 16 bits'),
    ((bytes8.astype(int)*1000, three), 'whole numbers from 0 to 255000'), ((bytes8.astype('i1'), three), 'whole numbers from -128'),
    ((np.where(bytes8 > 250, np.nan, bytes8), three), 'got NaN'), ((np.zeros((30, 2, 8, 8), np.uint8), three),
    '1 channel (grey) or 3 (colour)'),
    ((np.zeros((30, 8, 8, 4), np.uint8), three), 'leave it out: x[..., :3]'), ((np.zeros((30, 3, 8, 3), np.uint8), three),
    'channels first, or'),
    ((np.zeros((30, 1, 0, 8), np.uint8), three), 'must not be empty'), ((bytes8[:0], three[:0]), 'must not be empty'),
    ((bytes8[None], three), 'got shape'),
    ((np.zeros((30, 0)), three), 'must not be empty'), ((['a.png']*30, three), 'read_images reads files'), (((o for o in bytes8), three),
    'list(...) makes one'),
    (([np.zeros((8, 8 + i%2), np.uint8) for i in range(30)], three),
    'items of one shape, got (8, 8) in position 0 and (8, 9) in position 1'),
    (([bytes8[0, 0], *(bytes8[1:, 0]/255)], three), 'whose scales may differ'), ((bytes8, three, ['a', 'a', 'b']), "got 'a' twice"),
    ((bytes8, three, ['a', 'b']), 'must name the 2 classes'), ((bytes8, three + 1, ['a', 'b', 'c']), 'count them from 0 to 2, got 3'),
    ((bytes8, three, 'abc'), 'vocab must be a list'), ((bytes8, three, bytes8), 'test images go with test labels'),
    ((bytes8, three, [1, 2, 0]), 'these disagree'),
    ((bytes8, three, bytes8[:3], [-1]*3), 'if -1 stands for no label'), ((bytes8, three, bytes8[:3], three[:3] + 7), 'got 7, 8, 9'),
    ((bytes8, three, bytes8[:3], three[:3] + 1), 'got 3'), ((bytes8, names3, bytes8[:3], [0, 1, 2]), "the 3 classes 'ant', 'bee', 'cat'"),
    ((bytes8, three, bytes8[:5], three[:4]), '5 images but 4 labels'), ((bytes8, three, bytes8/255 - .5, three), 'x_test must hold pixels'),
    ((bytes8, three, np.zeros((3, 9, 9), np.uint8), three[:3]), 'x_test must have the shape of x, 1×8×8, got 1×9×9'),
    ((bytes8, three, rows5, three), 'x_test must be of the kind of x'), ((rows5, three, rows5[:, :4], three), '5 numbers, got 4 numbers'),
    ((rows5, three, rows5*np.nan, three), 'x_test must hold finite numbers'), ((rows5, rows5[:, 0], rows5, rows5[:, 0]*np.nan),
    'y_test has no label'),
    ((frame, three, frame.rename(columns=dict(a='q')), three), 'missing a; unknown q'), ((bytes8, three, bytes8, None),
    'x_test and y_test or neither'),
    (bytes8, 'without labels'), (frame, 'got one table'), (Examples(torch.tensor(rows5), torch.tensor(three),
    rows5, three - 2, list('abc')), 'got -2, -1'),
    (Examples(rows5*np.nan, three, rows5, three, list('abc')), 'got NaN'),
]


@pytest.mark.parametrize('data,words', BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_arrays_with_two_meanings_or_none_are_one_clear_error(data, words): fails(words, dls_for, data, bs=5)


def test_grey_pictures_beside_colour_are_read_in_colour(capsys):
    notice.cache_clear()
    ex = as_examples(([Image.fromarray(o[0]).convert('RGB' if i % 3 else 'L') for i,o in enumerate(bytes8)], three))
    assert torch.equal(ex.x, torch.tensor(bytes8).expand(-1, 3, -1, -1)) and '10 of 30 pictures are grey' in capsys.readouterr().out


def test_pairs_of_training_and_test_arrays():
    ex = as_examples(((bytes8, three), (bytes8[:9], three[:9])))
    assert len(ex.x_test) == 9 and torch.equal(ex.x[:9], ex.x_test)


@pytest.mark.parametrize('labels,words', [(['cat', 'Cat', 'dog']*10, "'Cat', 'cat', which differ only"),
    (['a b', 'a\u00a0b', 'dog']*10, 'which differ only'),
    (['dog', 'dog ', 'cat']*10, 'which differ only'),
    (np.array(['a', 'b', np.nan]*10), "a class called 'nan'"), (['caf\u00e9', 'cafe\u0301', 'tea']*10, '')], ids=range(5))
def test_class_names_that_look_alike_are_said(labels, words, capsys):
    notice.cache_clear()
    ex = as_examples((rows5, labels))
    assert words in capsys.readouterr().out and len(ex.vocab) == (3 if words else 2)


@pytest.mark.parametrize('f,words', [(lambda: dls_for((rows5, three), bs=5, size=8), 'size and channels are for images'),
    (lambda: show_classes((rows5, three)),
    'show_classes needs images'), (lambda: as_examples((rows5, ['a', '', 'b']*10)), 'for 10 of 30 examples'),
    (lambda: as_examples((rows5, set(range(30)))), 'set')], ids=range(4))
def test_requests_that_need_other_arrays(f, words): fails(words, f)


@pytest.mark.parametrize('f,words', [(lambda: pick(three, [-1, 1, 1]), '3 whole numbers from 0'), (lambda: pick(three, [1, 1]),
    'got [1, 1]'),
    (lambda: pick(three, 'x'), 'counts must be'), (lambda: oversample(three, [-1]), 'whole numbers from 0 to 29'),
    (lambda: oversample(three, []), 'at least one'),
    (lambda: share_out(10, [0, 0]), 'not all of them 0'), (lambda: dls_for('fashion_mini', valid=[[0, 1], [2]]), 'equal rows'),
    (lambda: dls_for((rows5, three), bs=5, augment=True), 'got rows of 5 numbers')], ids=range(8))
def test_counts_and_positions_in_arrays(f, words): fails(words, f)


def test_a_changed_byte_of_a_saved_set_is_noticed(tmp_path):
    file = tmp_path/'a.safetensors'
    save_set(file, Examples(bytes8, three, bytes8[:3], three[:3], list('abc')))
    data = bytearray(file.read_bytes())
    data[-1] ^= 64 # of the last picture
    file.write_bytes(data)
    with pytest.raises(CourseError, match='its numbers are not those that were written'): load_set(file)


def test_a_set_of_arrays_is_saved_as_it_is_read(tmp_path):
    save_set(tmp_path/'a.safetensors', Examples(bytes8/255, three, bytes8[:3], three[:3], list('abc')))
    assert torch.equal(load_set(tmp_path/'a.safetensors').x, torch.tensor(bytes8))


def test_test_columns_are_found_by_name():
    ex = as_examples((frame, three, frame[list('edcba')], three))
    assert torch.equal(ex.x, ex.x_test) and ex.features == list('abcde')


def test_a_size_makes_test_images_alike():
    dls = dls_for((bytes8, three, np.zeros((3, 9, 9), np.uint8), three[:3]), bs=5, size=8)
    assert dls.test.one_batch()[0].shape[1:] == (1, 8, 8)


def test_floats_for_labels_are_numbers_and_that_is_said(capsys):
    notice.cache_clear()
    assert as_examples((bytes8, three*1.)).vocab is None and 'y holds floats, so the network predicts numbers' in capsys.readouterr().out
    assert as_examples((rows5, three + 1)).vocab == ['1', '2', '3'] and 'y counts from 1' in capsys.readouterr().out


def test_a_constant_column_is_nothing_to_learn_from():
    x = dls_for((np.c_[np.full(30, 1e12), rows5], three), bs=5).one_batch()[0]
    assert (x[:, 0] == 0).all() and x.abs().max() < 10


@pytest.fixture(scope='module')
def readers():
    "Loaders of the same images given as bytes, floats to 1 and 16 bits, of colour images, and of a table"
    return dict(bytes=dls_for((bytes8, three), bs=5), floats=dls_for((bytes8/255, three), bs=5), deep=dls_for((bytes8.astype('u2')*257,
    three), bs=5),
                large=dls_for((bytes8.astype('f4'), three), bs=5), color=dls_for((np.repeat(bytes8, 3, 1), three), bs=5),
                table=dls_for((frame, three), bs=5))


@pytest.mark.parametrize('kind', [o for o in SAME_IMAGES if o not in ('nested lists', 'objects')])
@pytest.mark.parametrize('reader', ['bytes', 'floats', 'color'])
def test_images_to_predict_are_read_like_images_to_learn_from(readers, reader, kind):
    dls = readers[reader]
    expected = dls.test_dl(range(30)).one_batch()[0]
    assert torch.equal(dls.test_dl(SAME_IMAGES[kind]).one_batch()[0], expected)
    assert torch.equal(dls.test_dl([SAME_IMAGES[kind][3]]).one_batch()[0], expected[3:4])


def test_a_dark_image_stays_dark(readers):
    deep, dark = readers['deep'], (bytes8[:2]//10).astype('u2')*257
    assert torch.equal(deep.test_dl(dark).one_batch()[0], deep.test_dl(bytes8[:2]//10).one_batch()[0])
    fails('images of 0 to 1 or nearly black', readers['large'].test_dl, bytes8/255)
    fails('bytes or dark images of 16 bits', deep.test_dl, bytes8.astype('u2'))


@pytest.mark.parametrize('items', [frame, frame[list('dbeac')], rows5, rows5.tolist(), list(rows5), torch.tensor(rows5),
    rows5.astype(object),
    [frame.iloc[i] for i in range(30)], [frame.iloc[i][list('dbeac')] for i in range(30)]], ids=range(9))
def test_rows_to_predict_are_read_like_rows_to_learn_from(readers, items):
    dls = readers['table']
    assert torch.allclose(dls.test_dl(items).one_batch()[0], dls.test_dl(range(30)).one_batch()[0], atol=1e-6)


@pytest.mark.parametrize('reader,items,words', [
    ('bytes', [None], 'item 0 must be a file'), ('bytes', [bytes8[0], 1.5], 'item 1 must be a file'), ('bytes', [True], 'got True'),
    ('bytes', [], 'at least one'),
    ('bytes', [30], 'from 0 to 29, got 30'), ('bytes', [-1], 'got -1'), ('bytes', bytes8/127.5 - 1, 'undo their normalisation'),
    ('bytes', [bytes8[0]*np.nan], 'item 0 must hold finite pixels'), ('bytes', np.zeros((2, 4, 8, 8)), '1 channel (grey) or 3'),
    ('color', bytes8[:3, 0], 'one colour image or 3 grey ones'), ('table', rows5[:, :4], 'rows of 5 numbers'),
    ('table', rows5*np.nan, 'got NaN'),
    ('table', ['a.png'], 'an array of 5 numbers or a row number'),
    ('table', frame[list('abcd')], 'missing e; unknown none'), ('table', frame[:0], 'at least one'),
    ('table', [frame[:2]], 'item 0 must be one example of 5 numbers, got 2 of them'), ('color', [np.zeros((2, 3, 8, 8))], 'got 2 of them'),
    ('table', np.arange(5), '5 row numbers or one row of 5 numbers'), ('bytes', dict(enumerate(bytes8)), 'list(items.values())'),
    ('bytes', {1, 2}, 'got set')], ids=range(20))
def test_items_that_cannot_be_read(readers, reader, items, words): fails(words, readers[reader].test_dl, items)


def test_an_exported_learner_reads_items_as_before(tmp_path):
    learn = learner_for('mlp', data=(frame, three), bs=5)
    learn.export(tmp_path/'a.pkl')
    loaded = load_learner(tmp_path/'a.pkl')
    with learn.quiet(): expected = learn.predict(frame.iloc[3])[2]
    with loaded.quiet(): assert torch.equal(loaded.predict(frame.iloc[3][list('edcba')])[2], expected)
    fails('loaded without its data', loaded.predict, 3)


def test_labels_by_name_and_far_labels():
    assert class_counts(['bee', 'ant', 'bee']).to_dict() == {'ant': 1, 'bee': 2}
    fails('got 1000000000 among 2 labels', as_labels, [0, 10**9])
    fails("got 'a' twice", as_labels, [0, 1], ['a', 'a'])
    fails('got NaN', stratified_split, [np.nan]*10, .2)


@pytest.mark.parametrize('valid', [range(5), pd.Index(range(5)), pd.Series(range(5), index=list('abcde')), torch.arange(5),
    np.arange(30) < 5])
def test_validation_positions_in_any_container(valid):
    assert dls_for((rows5, three), bs=5, valid=valid).valid.dataset.items.tolist() == list(range(5))


# --- samples ---

vocab = ['cat', 'dog', 'frog', 'ship']
y = np.random.default_rng(0).integers(0, 4, 1000)


@pytest.mark.parametrize('labels', [[0., 1.], [[0, 1]], ['bird'], [], [-1, 0], [0, 4]])
def test_labels_that_are_none(labels): fails('', as_labels, np.array(labels), vocab)


def test_labels_from_tensors_and_lists():
    for o in (y.tolist(), torch.tensor(y), y.astype(np.uint8)): assert class_counts(o, vocab).sum() == 1000


@pytest.mark.parametrize('c', ['bird', 4, -1, 1.5, None, '9'])
def test_unknown_class(c): fails('unknown class', class_number, c, vocab)


def test_names_that_are_digits_come_before_numbers():
    assert class_number('7', ['3', '7']) == 1
    assert class_number('1', vocab) == 1


@pytest.mark.parametrize('classes', [[], ['cat'], 'cat', ['cat', 'cat'], ['cat', 0]])
def test_choice_of_fewer_than_two_classes(classes): fails('at least two', choose_classes, y, classes, vocab)


def test_order_of_classes_is_kept():
    idx, new = choose_classes(y, ['ship', 'cat'], vocab)
    assert new == ['ship', 'cat']
    assert (renumber(y, vocab, new)[idx] == np.where(y[idx] == 3, 0, 1)).all()
    assert (np.delete(renumber(y, vocab, new), idx) == -1).all()


@pytest.mark.parametrize('n', [0, -1, 2.5, None, '3'])
def test_n_per_class_that_is_none(n): fails('n must be a whole number of at least 1', n_per_class, y, n)


def test_more_than_there_is_names_the_class():
    few = np.repeat([0, 1, 2, 3], [9, 3, 9, 9])
    fails("class 'dog' has 3 images", n_per_class, few, 5, vocab=vocab)
    fails("class 'dog' has 3 images", imbalance, few, {'dog': 4}, vocab=vocab)
    fails("class 'ship' has 0 images", n_per_class, few[:21], 2, vocab=vocab)


def test_every_image_is_as_likely():
    seen = sum(np.isin(np.arange(40), pick(np.arange(40) % 2, [5, 10], seed)) for seed in range(400))
    assert abs(seen[::2].mean() - 100) < 1e-9 and seen[::2].std() < 15 and seen[1::2].std() < 15


@pytest.mark.parametrize('spec', [0, -3, float('nan'), {'dog': 0}, {'dog': -1}, {'dog': 1.5}, {'dog': 'all'}, {'dog': True}, {'bird': 3},
                                  [1, 2, 3], True])
def test_imbalance_that_is_none(spec): fails('', imbalance, y, spec, vocab=vocab)


def test_profile_starts_at_the_largest_class():
    assert long_tail([100, 400, 200], 4).tolist() == [100, 400, 200]
    assert long_tail([50, 400, 400], 100).tolist() == [4, 400, 40]
    assert long_tail([300]*4, 1).tolist() == [300]*4
    fails('leaves the smallest class no image', long_tail, [50, 50], 100)


def test_counts_and_fractions():
    assert imbalance_counts([10, 10, 10], [1, 1., 0.25]).tolist() == [1, 10, 2]
    assert imbalance_counts([10, 10], {'1': 0.01}).tolist() == [10, 1]


@pytest.mark.parametrize('p', [0, 0.1, 0.333, 1])
def test_exactly_that_many_labels_are_wrong(p):
    new, wrong = label_noise(y, p, 4, seed=5)
    assert wrong.sum() == round(p*1000) and (wrong == (new != y)).all() and new.min() >= 0 and new.max() < 4


def test_label_noise_is_symmetric():
    new, wrong = label_noise(np.zeros(30_000, int), 1, 4)
    assert abs(np.bincount(new)[1:] - 10_000).max() < 300


@pytest.mark.parametrize('p', [-0.1, 1.1, float('nan')])
def test_label_noise_out_of_range(p): fails('0 to 1', label_noise, y, p)


@pytest.mark.parametrize('valid', [0., 1., -0.2, 1.2, 0, 1000, 1001, True, 'a', None])
def test_split_that_is_none(valid): fails('valid must be', stratified_split, y, valid)


@pytest.mark.parametrize('valid', [0.1, 0.25, 137, 4])
def test_split_is_whole_and_proportional(valid):
    train, val = stratified_split(y, valid)
    n = valid if isinstance(valid, int) else round(valid*1000)
    assert len(val) == n and sorted([*train, *val]) == list(range(1000)) and train.dtype == val.dtype == np.int64
    assert abs(np.bincount(y[val]) - np.bincount(y)*n/1000).max() < 1


def test_every_class_is_on_both_sides():
    for have in ([500, 2], [500, 2, 2, 2], [2, 2, 2]):
        for part in (0.1, 0.5, 0.9):
            labels, n = np.repeat(range(len(have)), have), max(len(have), round(part*sum(have)))
            if n > sum(have) - len(have): continue
            take = valid_counts(have, n)
            assert take.sum() == n and (take >= 1).all() and (take < have).all()
            assert (np.bincount(labels[stratified_split(labels, n)[1]]) == take).all()


def test_a_class_that_cannot_be_split():
    fails("class 'dog' of 1", stratified_split, [0]*9 + [1], 0.5, vocab=vocab)
    fails('would have none for validation', stratified_split, y, 2)
    fails('would have none for training', stratified_split, y, 998)


def test_shares_add_up():
    rng = np.random.default_rng(1)
    for _ in range(50):
        counts = rng.integers(0, 100, 7) + [1, 0, 0, 0, 0, 0, 0]
        total = int(rng.integers(0, counts.sum() + 1))
        got = share_out(total, counts)
        assert got.sum() == total and (got <= counts).all() and abs(got - total*counts/counts.sum()).max() < 1


def test_float_targets_are_split_plainly():
    train, val = stratified_split(np.linspace(0, 1, 506), 102)
    assert len(train) == 404 and len(val) == 102 and not set(train) & set(val)


def test_repairs():
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    even = oversample(labels)
    assert np.bincount(labels[even]).tolist() == [50]*3
    times = np.bincount(even)
    assert set(times[50:57]) == {7, 8} and (times >= 1).all()
    assert (oversample(labels, [3, 55, 56]) < 58).all() and set(oversample(labels, [3, 55, 56])) == {3, 55, 56}
    fails('class 3 has no image', class_weights, labels, 4)
    assert class_weights(labels).dtype == torch.float32


def test_seeds():
    for f in (lambda s: n_per_class(y, 10, s), lambda s: imbalance(y, 10, s), lambda s: label_noise(y, 0.3, 4, s)[0],
              lambda s: stratified_split(y, 0.2, s)[1], lambda s: oversample(np.sort(y), seed=s)):
        assert (f(1) == f(1)).all() and not np.array_equal(f(1), f(2))


def test_nothing_given_is_changed():
    kept = y.copy()
    Selection(classes=['cat', 'dog'], n_per_class=20, imbalance=2, label_noise=0.5).apply(y, vocab)
    assert (y == kept).all()


def test_all_at_once():
    got = Selection(classes=['ship', 'cat'], n_per_class=100, imbalance=[1., 40], label_noise=0.25, valid=0.25, seed=3).apply(y, vocab)
    assert got.vocab == ['ship', 'cat'] and got.counts.train.tolist() == [75, 30] and got.counts.valid.tolist() == [25, 10]
    assert got.wrong.sum() == got.counts.wrong.sum() == 26 and not got.wrong[got.valid_idx].any()
    true = np.where(y == 3, 0, 1)
    assert (got.y[got.valid_idx] == true[got.valid_idx]).all() and ((got.y != true)[got.train_idx] == got.wrong[got.train_idx]).all()


def test_noise_does_not_change_what_is_chosen():
    clean, noisy = (Selection(n_per_class=100, label_noise=p).apply(y, vocab) for p in (0, 0.4))
    assert (clean.train_idx == noisy.train_idx).all() and (clean.valid_idx == noisy.valid_idx).all()


def test_named_validation_images():
    got = Selection(n_per_class=30, valid=np.arange(100)).apply(y, vocab)
    assert (got.valid_idx == np.arange(100)).all() and len(got.train_idx) == 120 and got.train_idx.min() >= 100
    fails('0 to 999', Selection(valid=[1000]).apply, y, vocab)
    fails('0 to 999', Selection(valid=[0.5]).apply, y, vocab)
    fails('named twice', Selection(valid=[3, 3]).apply, y, vocab)
    fails("class 'cat' has no training image", Selection(valid=np.flatnonzero(y == 0)).apply, y, vocab)


def test_no_validation():
    for none in (0, None, []): assert len(Selection(valid=none).apply(y, vocab).train_idx) == 1000


def test_one_class_is_not_enough(): fails('at least two', Selection().apply, np.zeros(10, int), ['cat'])


def test_float_targets():
    got = Selection(valid=102).apply(np.linspace(5, 50, 506))
    assert got.vocab is None and len(got.valid_idx) == 102
    for o in (dict(classes=[0, 1]), dict(n_per_class=3), dict(imbalance=10), dict(label_noise=0.1)):
        fails('needs classes', Selection(**o).apply, np.linspace(5, 50, 506))


@pytest.mark.parametrize('request_', [dict(), dict(classes=('cat', 3)), dict(imbalance={0: 0.5, 'dog': 7}),
                                      dict(imbalance=np.array([3, 4, 5, 6])),
                                      dict(valid=torch.arange(5)), dict(valid=np.float64(0.3)),
                                      dict(n_per_class=np.int64(9), imbalance=(1., 4, 5, 6))])
def test_request_through_json(request_):
    sel = Selection(**request_)
    back = Selection.from_dict(json.loads(json.dumps(sel.to_dict())))
    assert back == sel
    assert (back.apply(y, vocab).train_idx == sel.apply(y, vocab).train_idx).all()


def test_what_it_says():
    got = Selection(n_per_class=100, label_noise=0.1, valid=list(range(500))).apply(y, vocab)
    assert '40 with a wrong label' in str(got) and '<500 positions>' in str(got) and 'ship' in str(got)


def test_a_million_labels():
    million = np.random.default_rng(0).integers(0, 10, 1_000_000)
    start = time.process_time()
    stratified_split(million, 0.2)
    assert time.process_time() - start < 0.5 # 0.04 s where nothing else runs


# --- transforms ---

x = torch.randint(0, 256, (20, 3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
every = [lambda **k: SaltAndPepper((0.1, 0.5), **k), lambda **k: RandomScale((0.5, 2), **k), lambda **k: RandomPosition(3, **k),
         lambda **k: RandomPosition(canvas=(20, 18), **k), lambda **k: CropFlip(3, **k), lambda **k: CropFlip(3, mode='reflect', **k),
         lambda **k: BatchAffine(shear=(-9, 9), fill=0.5, **k), lambda **k: BatchAffine(mode='nearest', **k)]
each = pytest.mark.parametrize('make', every)


@each
def test_type_and_input_are_kept(make):
    for o in (x, x/255, (x/255).double(), (x/255).bfloat16()):
        kept, got = o.clone(), make().apply(o)
        assert got.dtype == o.dtype and got.shape[:2] == o.shape[:2] and torch.equal(o, kept)
        if o.is_floating_point(): assert got.min() >= 0 and got.max() <= 1.001


@each
def test_bytes_and_floats_agree(make):
    a, b = make(seed=1).apply(x), make(seed=1).apply(x/255)*255
    assert (a.float() - b).abs().max() < 0.51


@each
def test_seeds_of_transforms(make):
    tfm = make(seed=3)
    first, second = tfm.apply(x), tfm.apply(x)
    tfm.reset()
    assert torch.equal(tfm.apply(x), first) and not torch.equal(first, second) and not torch.equal(make(seed=4).apply(x), first)
    torch.manual_seed(0)
    was = torch.get_rng_state()
    tfm.apply(x)
    assert torch.equal(torch.get_rng_state(), was)


@each
def test_seed_all_governs(make):
    tfm, got = make(), []
    for _ in range(2):
        seed_all(5)
        got.append(tfm.apply(x))
    assert torch.equal(*got)


@each
def test_images_differ_by_their_own_draw(make):
    same = make(seed=1).apply(x[:1].expand(20, -1, -1, -1))
    assert sum(not torch.equal(o, same[0]) for o in same) > 10


@each
def test_in_a_pipeline(make):
    img = TensorImageBW(x[:, :1])
    got = Pipeline(make(), split_idx=0)(img)
    assert type(got) is TensorImageBW
    item = Pipeline(make(), split_idx=0)(TensorImage(x[0]))
    assert type(item) is TensorImage and item.ndim == 3
    mask = TensorMask(x[:, 0])
    assert Pipeline(make(), split_idx=0)((img, mask))[1] is mask
    assert type(make()).__name__ in repr(Pipeline(make())) and "'seed': None" in repr(Pipeline(make()))


@each
def test_copies_and_files(make):
    tfm = make(seed=1)
    tfm.apply(x)
    for o in (pickle.loads(pickle.dumps(tfm)), deepcopy(tfm)):
        assert not o._tables and torch.equal(o.apply(x), deepcopy(tfm).apply(x))


@each
def test_other_memory_layouts(make):
    for o in (x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 2)[:, :, :12], x[:, :1].expand(-1, 3, -1, -1)):
        assert torch.equal(make(seed=1).apply(o), make(seed=1).apply(o.contiguous()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')
@each
def test_on_a_gpu(make):
    got = make(seed=1).apply(x.cuda())
    assert got.is_cuda and got.dtype == torch.uint8
    assert torch.equal(make(seed=1).apply(x.cuda()), got)


def test_train_only():
    img = TensorImage(x)
    for tfm in (CropFlip(3), BatchAffine(), SaltAndPepper(train_only=True)):
        assert Pipeline(tfm, split_idx=1)(img) is img and not torch.equal(Pipeline(tfm, split_idx=0)(img), img)
    for tfm in (SaltAndPepper(), RandomScale(0.5), RandomPosition(3), CropFlip(3, train_only=False)):
        assert not torch.equal(Pipeline(tfm, split_idx=1)(img), img)


@pytest.mark.parametrize('where', ['item_tfms', 'batch_tfms'])
def test_in_a_data_block(where):
    tfms = [SaltAndPepper(0.3), CropFlip(2, train_only=False), BatchAffine(train_only=False)]
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: PILImage.create(x[i].permute(1, 2, 0).numpy()), get_y=lambda i: i % 2,
                      **{where: tfms}).dataloaders(range(20), bs=4)
    xb, yb = block.one_batch()
    assert xb.shape == (4, 3, 12, 16) and xb.dtype == torch.float32 and type(xb) is TensorImage and 0 <= xb.min() and xb.max() <= 1


def test_orders():
    tfms = [Normalize.from_stats([.5], [.5], cuda=False), BatchAffine(), SaltAndPepper(), RandomScale(0.5), CropFlip()]
    names = [type(o).__name__ for o in Pipeline(tfms).fs]
    assert names == ['SaltAndPepper', 'RandomScale', 'CropFlip', 'BatchAffine', 'Normalize']


# ranges
@pytest.mark.parametrize('v', [-0.1, 1.1, (0, 2), (0.5, 0.2), (0.1,), 'a', None, True, float('nan'), (0, None)])
def test_ranges(v): fails('amount must be a number from 0 to 1', as_range, v, 'amount', 0, 1)


# salt and pepper
def test_pixels_are_hit_in_all_channels():
    got = SaltAndPepper(0.5).apply(torch.full((50, 3, 12, 16), 7, dtype=torch.uint8))
    assert (got == got[:, :1]).all() and set(got.unique().tolist()) == {0, 7, 255}


def test_none_and_all_of_the_pixels():
    assert torch.equal(SaltAndPepper(0).apply(x), x)
    assert (SaltAndPepper(1, salt=1).apply(x) == 255).all() and (SaltAndPepper(1, salt=0).apply(x/255) == 0).all()


def test_amounts_are_drawn_for_each_image():
    hit = (SaltAndPepper((0.2, 0.6), seed=1).apply(torch.full((2000, 1, 20, 20), 7, dtype=torch.uint8)) != 7).float().mean((1, 2, 3))
    assert abs(hit.mean() - 0.4) < 0.01 and abs(hit.std() - 0.4/12**.5) < 0.02


@pytest.mark.parametrize('args', [(1.2,), (-0.1,), ((0.1, 1.2),), (0.1, 1.5), (0.1, -1)])
def test_amounts_out_of_range(args): fails('from 0 to 1', SaltAndPepper, *args)


# position
def test_a_window_is_a_slice():
    padded = F.pad(x, (20,)*4, value=255)
    top, left = torch.randint(-14, 14, (2, 20))
    got = take_window(x, top, left, (9, 21), fill=1)
    for o, p, t, l in zip(got, padded, top, left): assert torch.equal(o, p[:, t+20:t+29, l+20:l+41])


def test_places_are_equally_likely():
    dots = torch.zeros(4900, 1, 9, 9)
    dots[:, :, 4, 4] = 1
    seen = RandomPosition(3, seed=0).apply(dots).sum((0, 1))
    assert (seen[1:8, 1:8] > 60).all() and seen[1:8, 1:8].sum() == 4900


@pytest.mark.parametrize('kw, side', [(dict(shift=0.25), 3), (dict(shift=2), 2), (dict(shift=0), 0), (dict(shift=100), 11)])
def test_how_far_it_may_move(kw, side): assert RandomPosition(**kw).position_range(12, 0) == (-side, side, 12)


def test_every_pixel_is_on_the_canvas():
    got = RandomPosition(canvas=(30, 20), fill=1).apply(x)
    assert got.shape == (20, 3, 30, 20)
    assert ((got.long().sum((1, 2, 3)) - x.long().sum((1, 2, 3))) == 255*3*(30*20 - 12*16)).all()


@pytest.mark.parametrize('kw', [dict(), dict(shift=3, canvas=40), dict(shift=3, at=(1, 1)), dict(shift=-1), dict(shift='far'),
                                dict(canvas=40, train_only=True), dict(shift=1, fill=2)])
def test_positions_that_are_none(kw): fails('', RandomPosition, **kw)


@pytest.mark.parametrize('kw', [dict(canvas=12), dict(canvas=(40, 15)), dict(canvas=20, at=(9, 0)), dict(at=(12, 0)),
                                dict(canvas=20, at=(-1, 0))])
def test_positions_that_do_not_fit(kw): fails('along', RandomPosition(**kw).apply, x)


# affine maps
def test_the_grid_is_that_of_torch():
    deg, s, k, t = torch.tensor([0.3, -1.2]), torch.tensor([1.3, 0.6]), torch.tensor([0.2, -0.5]), torch.tensor([[0.1, -0.2], [0., 0.3]])
    got = affine_grid(pixel_axes(12, 12, deg.device), torch.stack([s, deg, *t, k]))
    slant = torch.eye(2).repeat(2, 1, 1)
    slant[:, 0, 1] = k
    turn = torch.stack([deg.cos(), -deg.sin(), deg.sin(), deg.cos()], 1).view(2, 2, 2)
    theta = torch.cat([slant @ turn / s[:, None, None], -2*t.T[:, :, None]], 2)
    assert torch.allclose(got, F.affine_grid(theta, (2, 1, 12, 12), align_corners=False), atol=1e-5)


def test_turns_of_other_shapes_keep_their_proportions():
    assert torch.equal(BatchAffine(180, 1, 0).apply(x), x.flip(-1, -2))
    disc = (((torch.arange(41) - 20)[:, None]**2 + (torch.arange(61) - 30)**2) < 225).float()[None, None]
    assert (BatchAffine(37, 1, 0).apply(disc) - disc).abs().mean() < 0.02


def test_fixed_strengths_do_not_vary():
    for tfm in (BatchAffine(20, 0.8, 0.1, 10), RandomScale(0.7)): assert torch.equal(tfm.apply(x), tfm.apply(x))


def test_background_of_small_images():
    for o, white in ((x, 255), (x/255, 1)):
        got = RandomScale(0.25, fill=1).apply(o)
        assert (got[:, :, :4] == white).all() and (got[..., :5] == white).all()


@pytest.mark.parametrize('kw', [dict(degrees=400), dict(scale=0), dict(scale=(-1, 1)), dict(shear=90), dict(translate=2), dict(fill=-1),
                                dict(mode='cubic')])
def test_affine_maps_that_are_none(kw): fails('', BatchAffine, **kw)


# crop and flip
@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('pad', [0, 1, 5, 11])
def test_each_result_is_a_crop(mode, dtype, pad):
    img = x.to(dtype)
    got, seen = CropFlip(pad, mode=mode).apply(img), set()
    for o, i in zip(got.double(), img.double()):
        padded = F.pad(torch.stack([i, i.flip(-1)]), (pad,)*4, mode='reflect' if mode == 'reflect' else 'constant')
        same = (padded.unfold(2, 12, 1).unfold(3, 16, 1) == o[None, :, None, None]).all((1, 4, 5))
        assert same.any()
        seen.add(same.nonzero()[0, 0].item())
    assert seen == {0, 1}


def test_moves_and_flips_are_equally_likely():
    img = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(9000, -1, -1, -1)
    for flip, mode in ((0.5, 'zeros'), (0.5, 'reflect'), (0.1, 'zeros'), (0, 'zeros'), (1, 'zeros')):
        kinds, n = CropFlip(1, flip, mode, seed=1).apply(img).flatten(1).unique(dim=0, return_counts=True)
        want = {0: 9, 1: 9}.get(flip, 18)
        if mode == 'zeros': assert len(kinds) == want
        if flip == 0.5 and mode == 'zeros': assert (n - 500).abs().max() < 110
        plain = (CropFlip(0, flip, mode, seed=1).apply(img) == img).all((1, 2, 3)).float().mean()
        assert abs(plain - (1 - flip)) < 0.02


def test_not_a_number_is_masked():
    got = CropFlip(3, 0, seed=1).apply(torch.full((50, 1, 8, 8), float('nan')))
    assert set(got.nan_to_num(7.).unique().tolist()) == {0., 7.}


@pytest.mark.parametrize('args', [(-1,), (1.5,), (4, 1.5), (4, 0.5, 'wrap')])
def test_crops_that_are_none(args): fails('', CropFlip, *args)


def test_pad_too_large(): fails('got pad=12 for 12×16', CropFlip(12).apply, x)


def test_take_runs_are_the_same_by_index():
    flat, start = torch.arange(50), torch.tensor([0, 43, 7])
    assert torch.equal(take_runs(flat, start, 7), flat[start[:, None] + torch.arange(7)])


# whole sets
def test_perturb_leaves_no_trace():
    tfms = [SaltAndPepper((0, 0.3), train_only=True), RandomPosition(3, seed=7)]
    torch.manual_seed(1)
    was, before = torch.get_rng_state(), deepcopy(tfms[1]).apply(x)
    a = perturb(x, tfms, seed=2, chunk=7)
    assert torch.equal(torch.get_rng_state(), was) and torch.equal(tfms[1].apply(x), before)
    assert a.dtype == torch.uint8 and torch.equal(a, perturb(x, tfms, seed=2, chunk=7))
    assert not torch.equal(a, perturb(x, tfms, seed=3, chunk=7))


def test_perturb_takes_one_and_arrays():
    got = perturb(x.numpy(), RandomPosition(canvas=20))
    assert isinstance(got, np.ndarray) and got.dtype == np.uint8 and got.shape == (20, 3, 20, 20)


def test_perturb_refuses():
    fails('images must be uint8', perturb, x/255, SaltAndPepper())
    fails('x must be an array of shape (N, C, H, W)', perturb, x[0], SaltAndPepper())
    fails('must be a BatchTransform', perturb, x, [Normalize.from_stats([.5], [.5], cuda=False)])


def test_a_subclass_gives_apply():
    with pytest.raises(NotImplementedError): BatchTransform().apply(x)


@pytest.mark.parametrize('channels', [1, 3])
def test_saved_images_come_back(tmp_path, channels):
    y = torch.arange(20) % 3
    found = image_files(save_images(tmp_path/'a'/'set', x[:, :channels], y, ['a/b', 'c d', 'é']))
    assert found.vocab == ['a-b', 'c d', 'é'] and len(found.files) == 20
    order = [int(o.stem) for o in found.files]
    assert torch.equal(read_images(found.files), x[order, :channels]) and (found.y == y.numpy()[order]).all()
    assert load_folder(tmp_path/'a'/'set').x.shape[1] == channels


def test_saving_refuses(tmp_path):
    y = torch.zeros(20, dtype=torch.long)
    fails('exists already', save_images, tmp_path, x, y)
    fails('images must be uint8', save_images, tmp_path/'a', x/255, y)
    fails('images must be uint8', save_images, tmp_path/'a', x[:, :2], y)
    fails('one for each label', save_images, tmp_path/'a', x, y[:3])
    fails('different folder names', save_images, tmp_path/'a', x, y, ['a/b', 'a:b'])
    fails('different folder names', save_images, tmp_path/'a', x, y, ['..', 'b'])
    fails('labels must be from', save_images, tmp_path/'a', x, y - 1, ['a', 'b'])
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    def full(self, path, *args): raise OSError(28, os.strerror(28))
    monkeypatch.setattr('PIL.Image.Image.save', full)
    fails('No space left', save_images, tmp_path/'set', x, torch.arange(20) % 2)
    assert not list(tmp_path.iterdir())


# --- saved sets ---

@pytest.fixture
def changed():
    ex = load('fashion_mini')
    return replace(ex, x=ex.x[:200], y=ex.y[:200], x_test=perturb(ex.x_test[:100], SaltAndPepper(0.2)), y_test=ex.y_test[:100])


def test_a_set_survives_the_disk(changed, tmp_path):
    save_set(tmp_path/'a.safetensors', changed, 'noise')
    back = load_set(tmp_path/'a.safetensors')
    for k in ('x', 'y', 'x_test', 'y_test'):
        a, b = getattr(back, k), getattr(changed, k)
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert (back.vocab, back.name, back.note) == (changed.vocab, changed.name, 'noise')
    one, two = (dls_for(o, seed=1).test.one_batch() for o in (changed, back))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_a_set_that_cannot_be_read_or_written(changed, tmp_path):
    file = tmp_path/'a.safetensors'
    with pytest.raises(CourseError, match='can be read'): load_set(tmp_path/'none.safetensors')
    file.write_bytes(b'no tensors')
    with pytest.raises(CourseError, match='can be read'): load_set(file)
    with pytest.raises(CourseError, match='cannot write'): save_set(file/'b.safetensors', changed)
    assert [o.name for o in tmp_path.iterdir()] == ['a.safetensors']


# --- blocks, loaders and checks ---

@pytest.fixture
def photos(tmp_path):
    "Two classes of 20 colour images, 12 by 16"
    rng = np.random.default_rng(0)
    for c, low in (('bright', 128), ('dark', 0)):
        (tmp_path/c).mkdir()
        for i in range(20): Image.fromarray(rng.integers(low, low+128, (12, 16, 3), dtype=np.uint8)).save(tmp_path/c/f'{i:02}.png')
    return tmp_path


@pytest.fixture(scope='module')
def learn():
    learn = learner_for('mlp', data='digits', seed=1, lr=1e-2)
    with learn.quiet(): learn.fit(2)
    return learn


def test_files_and_memory_hold_the_same_images(photos):
    a, b = (dls_for(photos, bs=4, in_memory=o, size=(12, 16)) for o in (True, False))
    assert isinstance(a.train, MemoryDL) and type(b.train) is TfmdDL
    (xa, ya), (xb, yb) = a.valid.one_batch(), b.valid.one_batch()
    assert torch.equal(ya, yb.as_subclass(torch.Tensor))
    assert torch.allclose(xa, xb.as_subclass(torch.Tensor), atol=0.02)


@pytest.fixture
def decoded_home(tmp_path_factory, monkeypatch):
    "A folder of its own for decoded images, in chunks of four of `photos`"
    monkeypatch.setenv('DLCOURSE_CACHE', str(tmp_path_factory.mktemp('home')))
    monkeypatch.setattr('dlcourse.data.decoded.chunk_bytes', 4*3*12*16)


PARTS3 = 'train', 'valid', 'test'


def all_batches(dls): return [o for dl in dls.loaders for b in dl for o in b]


def test_folder_too_large_for_memory_is_decoded_once(photos, decoded_home, capsys, monkeypatch):
    held = dls_for(photos, bs=4)
    monkeypatch.setattr('dlcourse.data.blocks.memory_limit', 1000)
    dls = dls_for(photos, bs=4)
    assert isinstance(dls.train, MemoryDL) and isinstance(dls.train.store, FolderStore) and 'decoded once' in capsys.readouterr().out
    for _ in range(2): assert all(torch.equal(a, b) for a,b in zip(all_batches(held), all_batches(dls), strict=True))
    assert check(dls).equals(check(held)) and [held.labels(o).tolist() for o in PARTS3] == [dls.labels(o).tolist() for o in PARTS3]
    assert type(dls_for(photos, bs=4, item_tfms=lambda o: o).train) is TfmdDL
    assert type(dls_for(photos, bs=4, mapped=False).train) is TfmdDL and 'stay in files' in capsys.readouterr().out
    fails('not both', dls_for, photos, mapped=True, in_memory=True)


def test_one_file_serves_every_selection_and_item_transform(photos, decoded_home):
    (photos/'train').mkdir()
    for o in ('bright', 'dark'): (photos/o).rename(photos/'train'/o)
    for kw in (dict(n_per_class=5), dict(valid=[3, 1, 30]), dict(classes=['dark', 'bright']), dict(oversample=True, imbalance=[8, 4]),
               dict(item_tfms=lambda o: o)):
        a, b = (dls_for(photos, bs=2, **{k: True}, **kw) for k in ('mapped', 'in_memory'))
        assert type(a.train) is type(b.train) and all(torch.equal(*map(torch.as_tensor, o)) for o in zip(all_batches(a), all_batches(b)))
    assert len(decoded_sets()) == 1


def test_decoding_goes_on_where_it_was_interrupted(photos, decoded_home, monkeypatch):
    files, asked, real = image_files(photos).files, [], decoding._decode_chunk
    def interrupted(f, start, *args):
        asked.append(start)
        if len(asked) == 6: raise KeyboardInterrupt
        return real(f, start, *args)
    monkeypatch.setattr(decoding, '_decode_chunk', interrupted)
    with pytest.raises(KeyboardInterrupt): decoding.decode(photos, files, (3, 12, 16), processes=1)
    o = decoded_for(photos, decoding.origin_of(photos, files, (3, 12, 16)), (40, 3, 12, 16))
    assert decoded_sets().done.tolist() == ['50%'] and not is_whole(o)
    with open(o.path, 'r+b') as f: f.seek(asked[2] + 5); f.write(b'oops')
    with open(o.marks_file, 'ab') as f: f.write(b'torn')
    again = decoding.decode(photos, files, (3, 12, 16), processes=1)
    assert sorted(asked[6:]) == sorted(asked[2:3] + [128 + k*2304 for k in range(5, 10)]) and is_whole(again)
    assert np.array_equal(np.load(again.path), read_images(files)) and not o.marks_file.exists()


@pytest.mark.parametrize('change', ['touch', 'more', 'fewer', 'size', 'note', 'short', 'head', 'pixel', 'sums'])
def test_what_changed_is_decoded_anew(photos, decoded_home, change):
    files = image_files(photos).files
    o, one = decoding.decode(photos, files, (3, 12, 16)), files[0]
    if change == 'touch': os.utime(one, ns=(0, 0))
    if change == 'size': Image.new('RGB', (16, 12)).save(one)
    if change == 'more': shutil.copy(one, one.with_name('more.png'))
    if change == 'fewer': one.unlink()
    if change == 'note': o.note_file.write_text('{')
    if change == 'short': os.truncate(o.path, 1000)
    if change == 'head': o.path.write_bytes(b'x'*128 + o.path.read_bytes()[128:])
    if change in ('pixel', 'sums'): o.path.write_bytes(o.path.read_bytes()[:-1] + b'x')
    if change == 'sums': o.note_file.write_text(o.note_file.read_text().replace('"sums": [', '"sums": [[], '))
    files = image_files(photos).files
    again = decoding.decode(photos, files, (3, 12, 16))
    assert again.path == o.path and np.array_equal(np.load(again.path), read_images(files)) and len(decoded_sets()) == 1
    assert decoding.decode(photos, files, (3, 12, 16)) == again
    assert (o.origin == again.origin) == (change in ('note', 'short', 'head', 'pixel', 'sums'))


def test_a_copy_of_the_decoded_images_is_taken_as_it_is(photos, decoded_home, monkeypatch):
    files = image_files(photos).files
    o = decoding.decode(photos, files, (3, 12, 16))
    os.utime(o.path, ns=(5, 5))
    monkeypatch.setattr(decoding, '_fill', None)
    for _ in range(2): assert decoding.decode(photos, files, (3, 12, 16)) == o
    assert json.loads(o.note_file.read_text())['time'] == 5


def test_a_place_that_cannot_be_written_is_named_before_it_is_locked(photos, decoded_home, monkeypatch):
    monkeypatch.setattr('os.access', lambda *args: False)
    fails('cannot be written: set DLCOURSE_CACHE to a folder that can', dls_for, photos, mapped=True)


def test_processes_decode_the_same_bytes_and_name_all_faults(photos, decoded_home):
    (photos/'dark'/'07.png').write_bytes(b'')
    (photos/'bright'/'19.png').write_bytes(b'no picture')
    files = image_files(photos).files
    fails("2 of 40 files can't be read", decoding.decode, photos, files, (3, 12, 16), processes=2)
    for o in ('dark/07.png', 'bright/19.png'): Image.new('RGB', (30, 20), 'red').save(photos/o)
    assert np.array_equal(np.load(decoding.decode(photos, files, (3, 12, 16), processes=2).path), read_images(files, (12, 16), 3))


def test_a_disk_without_room(photos, decoded_home, capsys, monkeypatch):
    monkeypatch.setattr('dlcourse.data.blocks.memory_limit', 1000)
    monkeypatch.setattr('shutil.disk_usage', lambda o: SimpleNamespace(free=5000))
    assert type(dls_for(photos, bs=4).train) is TfmdDL
    assert 'stay in files, which is slow' in capsys.readouterr().out
    fails('0.0 GB free, and 40 images of 3×12×16 take 0.0 GB', dls_for, photos, mapped=True)


def test_a_second_process_waits_and_finds_the_images(photos, decoded_home, capsys, monkeypatch):
    files, real, began, calls = image_files(photos).files, decoding._decode_chunk, threading.Event(), []
    def slow(*args):
        calls.append(began.set())
        time.sleep(0.05)
        return real(*args)
    monkeypatch.setattr(decoding, '_decode_chunk', slow)
    first = threading.Thread(target=decoding.decode, args=(photos, files, (3, 12, 16), 1))
    first.start()
    began.wait(10)
    assert is_whole(decoding.decode(photos, files, (3, 12, 16), processes=1))
    first.join()
    assert len(calls) == 10 and 'is being made by another process: waiting for it' in capsys.readouterr().out


def test_decoded_images_travel_by_name_and_are_cleared(photos, decoded_home, tmp_path_factory):
    dls = dls_for(photos, bs=4, mapped=True)
    data = pickle.dumps(dls.train.store)
    assert len(data) < 10_000 and torch.equal(pickle.loads(data).parts[0][0], dls.train.store.parts[0][0])
    learn = learner_for('mlp', dls)
    with learn.quiet(): learn.fit(1)
    learn.export(file := tmp_path_factory.mktemp('learn')/'learn.pkl')
    name = decoded_sets().index[0]
    with lock_for(decoded_folder()/f'{name}.npy'): fails('is being made by another process', clear_decoded)
    assert clear_decoded([name]) == 128 + 40*3*12*16 and not len(decoded_sets())
    fails('no decoded images', clear_decoded, [name])
    fails('are gone or damaged', pickle.loads, data)
    assert dls.one_batch()[0].shape == (4, 3, 12, 16) and load_learner(file).predict(photos/'dark'/'00.png')[0] in ('bright', 'dark')


def test_mapped_floats_and_tables_stay_on_disk(tmp_path):
    x, rows = (np.random.default_rng(0).random(shape, dtype=np.float32) for shape in ((40, 8, 9, 3), (40, 5)))
    for name,o in dict(x=x, rows=rows).items():
        np.save(tmp_path/f'{name}.npy', o)
        a, b = (dls_for((v, np.arange(40) % 2), bs=4) for v in (np.load(tmp_path/f'{name}.npy', mmap_mode='r'), o))
        assert type(a.train.store) is MappedStore and all(torch.equal(*v) for v in zip(all_batches(a), all_batches(b)))
    rows[[3, 7], 2] = np.nan, np.inf
    np.save(tmp_path/'rows.npy', rows)
    bad = np.load(tmp_path/'rows.npy', mmap_mode='r')
    fails('got NaN: 2 of 40 rows are not finite, the first is row 3, column 2', dls_for, (bad, three))


def test_mapped_images_go_to_the_device_batch_by_batch(photos, decoded_home):
    dls = dls_for(photos, bs=4, mapped=True, normalize=False, device=torch.device('meta'))
    x, y = dls.one_batch()
    assert x.device.type == y.device.type == 'meta' and dls.train.store.parts[0][0].device.type == 'cpu'


@pytest.mark.parametrize('axes', [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_mapped_arrays_of_any_layout_stay_on_disk(tmp_path, axes):
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 9), dtype=np.uint8)
    np.save(tmp_path/'x.npy', x.transpose(axes))
    a, b = (dls_for((o, np.arange(40) % 2), bs=4) for o in (np.load(tmp_path/'x.npy', mmap_mode='r'), x))
    assert type(a.train.store) is MappedStore and all(torch.equal(*o) for o in zip(all_batches(a), all_batches(b)))
    with open('/proc/self/maps') if os.path.exists('/proc/self/maps') else nullcontext([]) as f:
        places = [tuple(int(n, 16) for n in o.split()[0].split('-')) for o in f if str(tmp_path) in o]
    assert not places or any(lo <= a.train.store.parts[0][0].data_ptr() < hi for lo,hi in places)


def test_grey_beside_colour_in_files(photos):
    Image.new('L', (16, 12)).save(photos/'dark'/'99.png')
    assert check(dls_for(photos, bs=4, in_memory=False), n=None).result.iloc[0].startswith('PILImage')
    assert check(dls_for(photos, bs=4, in_memory=False, channels=1), n=None).result.iloc[0].startswith('PILGray')


def test_folder_learns_and_predicts_a_file(photos):
    learn = learner_for('mlp', data=photos, bs=8, lr=1e-2, seed=1)
    with learn.quiet(): learn.fit(3)
    label, _, probs = learn.predict(photos/'dark'/'00.png')
    assert label == 'dark' and probs.shape == (2,)


def test_train_only_transforms_leave_validation_alone():
    plain, augmented = dls_for('digits'), dls_for('digits', augment=CropFlip(pad=2))
    assert torch.equal(plain.valid.one_batch()[0], augmented.valid.one_batch()[0])
    x = [torch.cat([b[0] for b in d.train.new(shuffle=False)]) for d in (plain, augmented)]
    assert not torch.equal(*x)


def test_predictions_come_in_the_order_of_the_items(learn):
    probs, targets = learn.get_preds(ds_idx=0)
    ds = learn.dls.train_ds
    assert targets.tolist() == [int(ds[i][1]) for i in range(len(ds))]
    one = learn.get_preds(dl=learn.dls.test_dl(ds.items[:7]))[0]
    assert torch.allclose(one, probs[:7], atol=1e-6)


def test_test_dl_takes_files_images_and_rows(learn, tmp_path):
    image = learn.dls.valid_ds[0][0]
    image.save(tmp_path/'a.png')
    file = tmp_path/'a.png'
    for items in ([file], [str(file)], [Image.open(file)], [np.asarray(image)], learn.dls.valid_ds.items[:1]):
        assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(items))[0], learn.get_preds()[0][:1], atol=1e-6)


def test_interpretation_decodes_and_shows(learn):
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
    inputs, probs, targets, decoded, losses = interp[[0, 3]]
    interp.plot_top_losses(2)
    learn.show_results(max_n=2)
    assert inputs.shape == (2, 1, 8, 8) and len(probs) == len(losses) == 2
    shown = learn.dls.valid.decode(learn.dls.valid.one_batch())[0]
    assert 0 <= shown.min() and shown.max() <= 255


def test_export_leaves_the_images_behind(learn, tmp_path):
    learn.path = tmp_path
    learn.export()
    weights = sum(o.numel()*4 for o in learn.model.parameters())
    assert (tmp_path/'export.pkl').stat().st_size < weights + 50_000
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    image = learn.dls.valid_ds[0][0]
    with loaded.quiet(): assert torch.allclose(loaded.predict(image)[2], learn.predict(image)[2], atol=1e-6)


def test_stock_learner_takes_the_loader():
    learn = learner_for('mlp', data='digits')
    stock = Learner(learn.dls, learn.model, loss_func=learn.loss_func, opt_func=learn.opt_func, metrics=learn.metrics)
    with stock.quiet(): stock.fit(1)
    assert stock.get_preds()[0].shape == (len(learn.dls.valid_ds), 10)


def test_check_looks_at_validation_items_too(photos):
    dls = dls_for(photos, bs=4, in_memory=False, normalize=False)
    file = dls.valid_ds.tls[0].tfms.fs[0].store.files[dls.valid_ds.items[-1]]
    file.write_text('not an image')
    with pytest.raises(CourseError, match=file.name): check(dls, n=None)


def test_loaders_start_from_their_seed():
    a, b, c = (dls_for('digits', seed=s).one_batch()[1] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_validation_on_the_test_part():
    dls = dls_for('digits', valid='test')
    assert len(dls.loaders) == 2
    with pytest.raises(CourseError, match='no separate test set'): dls.test


def test_a_block_of_ones_own():
    block = block_for('digits', augment=CropFlip(pad=1))
    dls = dls_for(block, bs=16)
    assert dls.one_batch()[0].shape == (16, 1, 8, 8) and dls.name == 'digits'


@pytest.mark.parametrize('data,kw,match', [
    ('digit', {}, "Did you mean 'digits'"),
    ('digits', dict(classes=['1', 'two']), 'unknown class'),
    ('digits', dict(classes=['1']), 'two different classes'),
    ('digits', dict(n_per_class=5000), 'fewer than the 5,000'),
    ('digits', dict(bs=5000), 'batch size 5000 is larger'),
    ((np.zeros((4, 8, 8), np.uint8), [0, 1, 0]), {}, '4 images but 3 labels'),
    ((np.zeros((4, 8, 8), np.uint8),), {}, 'data must be arrays'),
    ((np.full((4, 8, 8), -1.), [0, 1, 0, 1]), {}, 'undo their normalisation'),
    (42, {}, 'data must be (a name|text)'),
])
def test_bad_data_is_one_clear_error(data, kw, match):
    with pytest.raises(CourseError, match=match): dls_for(data, **kw)


@pytest.mark.parametrize('size', [(28, 14), (14, 28), (14, 14), (56, 14)])
def test_shrinking_either_side_smooths(size):
    "Stripes of one pixel become grey wherever the side across them shrinks"
    x = 255*(torch.arange(28) % 2).float().expand(1, 1, 28, 28)
    if size[1] == 28: x = x.transpose(2, 3)
    y = AtSize(size).apply(x.byte())
    assert y.shape[2:] == size and (y[..., 2:-2, 2:-2] - 127.5).abs().max() < 40


# ---- core sets ----

CORE_SETS = [k_center, herding, diverse]
cloud = np.random.default_rng(1).normal(size=(60, 4))


@pytest.mark.parametrize('choose', CORE_SETS)
def test_core_set_is_what_was_asked_for(choose):
    chosen = choose(cloud, 20)
    assert len(set(chosen.tolist())) == 20 and set(chosen) <= set(range(60))
    np.random.seed(7), torch.manual_seed(7)
    assert np.array_equal(chosen, choose(cloud, 20)) and np.array_equal(chosen[:6], choose(cloud, 6))
    assert sorted(choose(cloud, 60)) == list(range(60)) and len(choose(cloud, 1)) == 1


@pytest.mark.parametrize('choose', CORE_SETS)
def test_core_set_of_equal_examples_has_no_example_twice(choose): assert sorted(choose(np.ones((5, 2)), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('choose', CORE_SETS)
def test_core_set_refuses(choose):
    for k in (0, -1): fails(f'k must be a whole number of at least 1, got {k}', choose, cloud, k)
    fails('k must be from 1 to 60, the number of examples, got 61', choose, cloud, 61)
    fails('data must hold finite numbers only, got NaN', choose, np.array([[1., np.nan]]), 1)
    fails('data must be rows of numbers', choose, ['a', 'b'], 1)


@pytest.mark.parametrize('choose', [k_center, diverse])
def test_core_set_keeps_its_first_example(choose):
    assert choose(cloud, 9, start=17)[0] == 17
    fails('start must be a position from 0 to 59, got 60', choose, cloud, 2, start=60)


def test_core_sets_of_examples_are_those_of_their_rows():
    ex = load('digits')
    assert np.array_equal(k_center(ex, 9), k_center(ex.x.flatten(1), 9))


def test_k_center_is_within_twice_the_smallest_radius():
    few = cloud[:11]
    best = min(covering_radius(few, list(o)) for o in itertools.combinations(range(11), 3))
    assert best <= covering_radius(few, k_center(few, 3)) <= 2*best
