"What the tests share"
import glob, importlib.util, os, shutil, subprocess, sys, tempfile
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # a thread that waits for another one sleeps; it is read when torch is imported
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1') # NumPy's threads wait busily: on small matrices they cost ten times what they do
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
import outputs


def execute(code, folder, log, env):
    "Execute `code` in this process, which was made for it; what it prints goes into the files `log`.out and `log`.err"
    outputs.write_into(log)
    os.environ.update(env)
    os.chdir(folder)
    try: exec(code, dict(__name__='__main__'))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Aside:
    """Python code in a process of its own, in `folder` or this one, with `env` added to its environment; it is forked from one that
    has the imports behind it, on one thread"""
    def __init__(self, code, folder=None, **env):
        self.log = Path(tempfile.mkdtemp())/'log'
        self.process = outputs.processes().Process(target=execute, args=(code, str(folder or os.getcwd()), str(self.log), env))
        with outputs.STARTING, outputs.lean_processes(): self.process.start()

    def ended(self): return self.process.exitcode is not None

    def printed(self): return Path(f'{self.log}.out').read_text(encoding='utf-8') if Path(f'{self.log}.out').exists() else ''

    def result(self, seconds=300):
        "Exit code, and what was printed; a process that takes longer than `seconds` is killed, and its code is None"
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None: self.process.kill()
        out, err = outputs.written(self.log)
        shutil.rmtree(self.log.parent)
        return code, out, err


def needs_data(*folders):
    "Mark a test that needs real data, and skip it, saying why, unless `$DLCOURSE_DATA` holds each of `folders`"
    root = os.environ.get('DLCOURSE_DATA')
    missing = [o for o in folders if not (root and (Path(root)/o).exists())]
    skip = pytest.mark.skipif(bool(missing), reason=f"real data not found: $DLCOURSE_DATA has no {', '.join(missing)}")
    return lambda test: pytest.mark.realdata(skip(test))


@pytest.fixture(autouse=True)
def same_number_of_threads():
    "Fail a test that leaves torch's number of threads changed, and put the number back for the next one"
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"this test left torch with {after} threads, and found {before}: use `with num_threads(n):`"


@pytest.fixture(autouse=True)
def no_proxy_to_this_machine(monkeypatch):
    "Servers that a test starts are on this machine, so that no proxy stands between, whatever the environment says"
    for k in ('no_proxy', 'NO_PROXY'): monkeypatch.setenv(k, '127.0.0.1,localhost')


def postgres_missing():
    "Reason why no PostgreSQL can be started here, or None"
    if not postgres_programs(): return 'PostgreSQL is not installed: apt-get install postgresql'
    if importlib.util.find_spec('psycopg') is None: return "its driver is not installed: pip install 'dlcourse[postgres]'"
    if os.name != 'posix': return 'the server is started only on Linux and macOS'
    if not has_name(): return 'PostgreSQL does not run as a user without an entry in /etc/passwd'
    if os.geteuid() == 0 and not shutil.which('runuser'): return 'PostgreSQL does not run as root, and there is no runuser'


def has_name():
    "Whether the user of this process has a name"
    import pwd
    try: pwd.getpwuid(os.geteuid())
    except KeyError: return False
    return True


def postgres_programs():
    "Folder of `initdb` and `pg_ctl`; None without them"
    found = [Path(o).parent for o in (shutil.which('initdb'), *sorted(glob.glob('/usr/lib/postgresql/*/bin/initdb'))) if o]
    return next((o for o in found[::-1] if (o/'pg_ctl').exists()), None)


@pytest.fixture(scope='session')
def postgres():
    "Address of a database of a PostgreSQL that is started for the tests, with a password in it; skipped, saying why, where there is none"
    if why := postgres_missing(): pytest.skip(why)
    folder, programs = Path(tempfile.mkdtemp(dir='/tmp')), postgres_programs()
    other = ['runuser', '-u', 'postgres', '--'] if os.geteuid() == 0 else []
    if other: shutil.chown(folder, 'postgres')
    def call(name, *args): subprocess.run([*other, programs/name, '-D', folder/'data', *args], check=True, capture_output=True, cwd=folder)
    call('initdb', '-A', 'trust', '-U', 'ana', '--no-sync', '--locale=C', '-E', 'UTF8')
    call('pg_ctl', '-w', '-l', folder/'log', '-o', f"-k {folder} -c listen_addresses='' -c fsync=off", 'start')
    yield f'postgresql://ana:secret@/postgres?host={folder}'
    call('pg_ctl', '-m', 'immediate', 'stop')
    shutil.rmtree(folder)


@pytest.fixture
def drawn():
    "A test that is about the pictures of a run asks for this: they are drawn"


@pytest.fixture
def drawn_on_request(request, monkeypatch):
    "The pictures of a run stay white where a test is about something else: to draw them takes longer than to train a small network"
    import dlcourse.training.runs # it takes the real function when it is imported
    import matplotlib.pyplot as plt
    from dlcourse.core import whole_file
    def blank(fig, path, dpi=1):
        plt.close(fig)
        with whole_file(path, 'wb') as f: plt.imsave(f, [[1.]], format=Path(path).suffix[1:])
    if 'drawn' not in request.fixturenames: monkeypatch.setattr('dlcourse.core.save_figure', blank)


@contextmanager
def small_disk(n):
    "Within the block no file grows beyond `n` bytes, whoever writes it"
    resource = pytest.importorskip('resource')
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, was[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
