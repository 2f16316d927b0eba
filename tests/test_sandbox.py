# ruff: noqa: E501 (a hostile program is one line of the table)
"""Hostile programs: each costs its own item a clear status, nothing is harmed, nothing is left behind."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__": sys.path.insert(0, str(ROOT))

from qwen_eval.errors import SandboxError
from qwen_eval.sandbox import KINDS, Limits, Sandbox, _seen, available

pytestmark = pytest.mark.xdist_group("sandbox") # what is left behind is looked for on the whole machine

TIGHT = Limits(cpu_s=1, wall_s=2, memory_mib=256, processes=24, output_kib=16, scratch_mib=8)
NOBODY = 65534

# `refused(f)` ends a program with status 9 where the kernel let f do it.
PRELUDE = """
import ctypes, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def refused(*actions):
    for action in actions:
        try: result = action()
        except (OSError, ValueError): continue
        if result == -1: continue
        print("was let", action, repr(result)[:200]); sys.stdout.flush(); os._exit(9)
def call(name, *args): return getattr(libc, name)(*args)
def syscall(*args): return libc.syscall(*map(ctypes.c_long, args))
"""
CONTAINED = {
    "tcp": "refused(lambda: socket.create_connection(('127.0.0.1', PORT), 1), lambda: socket.create_server(('127.0.0.1', 0)))",
    "udp": "refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)))",
    "raw and netlink sockets": "refused(lambda: socket.socket(17, 3), lambda: socket.socket(16, 3), lambda: socket.socket(40, 1))",
    "unix socket": "refused(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET))",
    "abstract socket": "refused(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + TOKEN))",
    "datagram pair": "a, b = socket.socketpair()\nrefused(lambda: socket.socketpair(1, socket.SOCK_DGRAM)[0].sendto(b'x', SOCKET))",
    "name lookup": "import urllib.request\nrefused(lambda: urllib.request.urlopen('http://example.org', timeout=1))",
    "kill the parent": "for s in (9, 15, 2, 19):\n    try: os.kill(os.getppid(), s)\n    except OSError: pass",
    "kill everybody": "try: os.kill(-1, 9)\nexcept OSError: pass",
    "kill a process of the host": "refused(lambda: os.kill(HOST_PID, 9), lambda: os.killpg(HOST_PID, 9), lambda: syscall(234, HOST_PID, HOST_PID, 9))",
    "signal by ownership": "import fcntl\na, b = socket.socketpair()\nrefused(lambda: fcntl.fcntl(a, fcntl.F_SETOWN, HOST_PID))",
    "ptrace": "refused(lambda: call('ptrace', 16, os.getppid(), 0, 0), lambda: call('ptrace', 16, HOST_PID, 0, 0), lambda: call('ptrace', 0, 0, 0, 0))",
    "memory of others": "buf = ctypes.create_string_buffer(64)\nrefused(lambda: open(f'/proc/{os.getppid()}/mem', 'r+b'), lambda: open(f'/proc/{HOST_PID}/mem', 'rb'), lambda: syscall(310, os.getppid(), 0, 0, 0, 0, 0))",
    "proc of the parent": "p = f'/proc/{os.getppid()}'\nrefused(lambda: open(p + '/environ').read(), lambda: os.listdir(p + '/fd'), *[lambda d=d: os.listdir(os.path.join(p, d, 'home')) for d in ('root', 'cwd')])",
    "proc writes": "refused(*[lambda f=f: open(f, 'w').write('1') for f in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches', '/proc/self/uid_map', '/proc/1/oom_score_adj', '/sys/kernel/uevent_helper')])",
    "limits of others": "import resource\nrefused(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)), lambda: resource.prlimit(HOST_PID, resource.RLIMIT_CPU, (1, 1)))",
    "raise own limits": "import resource\nrefused(*[lambda r=r: resource.setrlimit(r, (2**40, 2**40)) for r in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)])",
    "symlink out": "os.symlink(CANARY, 'x')\nrefused(lambda: open('x').read(), lambda: open('x', 'a'))",
    "hard link out": "refused(lambda: os.link(CANARY, 'x'), lambda: os.rename(CANARY, 'x'))",
    "harm the canary": "d = os.path.dirname(CANARY)\nrefused(lambda: open(CANARY, 'w'), lambda: os.unlink(CANARY), lambda: os.chmod(CANARY, 0), lambda: os.utime(CANARY, (0, 0)), lambda: os.truncate(CANARY, 0), lambda: os.open(CANARY, os.O_RDONLY | os.O_TRUNC), lambda: os.mkdir(d + '/new'), lambda: os.chmod(d, 0))",
    "read the host": "refused(lambda: open(CANARY).read(), lambda: open(HOST_HOME + '/.bashrc'), lambda: os.listdir(HOST_HOME + '/.ssh'), lambda: open('/etc/shadow'), lambda: os.listdir('/etc/ssh'), lambda: open(PROJECT + '/pyproject.toml'))",
    "write to home": "for d in (HOST_HOME, '/home', '/var/tmp', '/etc', '/usr', '/', '/run', '/dev', os.path.dirname(sys.executable), os.path.dirname(os.__file__)): refused(lambda: open(d + '/qwen_eval_' + TOKEN, 'w'))",
    "harm the interpreter": "refused(lambda: open(os.path.realpath(sys.executable), 'ab'), lambda: open(os.__file__, 'a'), lambda: os.chmod(os.__file__, 0), lambda: os.utime(os.__file__), lambda: os.unlink(os.__file__), lambda: os.open(os.__file__, os.O_TRUNC))",
    "secrets of the environment": "assert SECRET not in str(os.environ), 'in os.environ'\nimport glob\nfor f in glob.glob('/proc/[0-9]*/environ'):\n    try: assert SECRET.encode() not in open(f, 'rb').read(), f\n    except OSError: pass",
    "scratch of others": "import glob, tempfile\nhere = os.path.realpath('.')\nfor d in glob.glob('/tmp/qwen_eval_scratch_*') + ['/tmp', '..', '/dev/shm']:\n    if os.path.realpath(d) != here and os.path.realpath(d) != '/': refused(lambda: open(d + '/theirs', 'w'))\n    if 'qwen_eval' in d and os.path.realpath(d) != here: refused(lambda: os.listdir(d))",
    "namespaces inside": "refused(*[lambda f=f: call('unshare', f) for f in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000)], lambda: syscall(56, 0x10000000 | 17, 0, 0, 0, 0), lambda: call('setns', 0, 0))",
    "mount and chroot": "refused(lambda: call('mount', b'none', b'/tmp', b'tmpfs', 0, None), lambda: os.chroot('/usr'), lambda: call('umount2', b'/proc', 2), lambda: syscall(155, 0, 0), lambda: syscall(428, -100, 0, 1), lambda: syscall(442, -100, 0, 0, 0, 0))",
    "become root": "refused(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0))\nassert os.getuid() != 0",
    "set-uid program": "r = subprocess.run(['/bin/sh', '-c', 'su -c id || sudo -n id || mount'], capture_output=True, text=True, timeout=1.5)\nassert 'uid=0' not in r.stdout",
    "kernel interfaces": "refused(lambda: syscall(425, 8, 0), lambda: syscall(321, 0, 0, 0), lambda: syscall(298, 0, 0, -1, -1, 0), lambda: syscall(250, 0, 0), lambda: syscall(323, 0), lambda: syscall(304, -1, 0, 0), lambda: syscall(319, 0, 0))",
    "another numbering": "pid = os.fork()\nif not pid: syscall(0x40000000 + 39); os._exit(9)\nassert os.waitpid(pid, 0)[1] != 9 << 8, 'x32 went through'",
    "machine settings": "refused(lambda: call('sethostname', b'x', 1), lambda: time.clock_settime(0, 0), lambda: call('reboot', 0), lambda: call('swapoff', b'/x'), lambda: call('klogctl', 10, 0, 0))",
    "devices": "refused(lambda: os.mknod('disk', 0o60600, os.makedev(254, 0)), lambda: open('/dev/vda', 'rb'), lambda: open('/dev/sda', 'rb'), lambda: open('/dev/mem', 'rb'), lambda: open('/dev/tty'), lambda: open('/dev/kmsg'))",
    "system V memory": "refused(lambda: call('shmget', 4242, 4096, 0o1600), lambda: call('semget', 4242, 1, 0o1600), lambda: call('msgget', 4242, 0o1600))",
    "posix memory left behind": "from multiprocessing import shared_memory, resource_tracker\nresource_tracker.register = lambda *a: None\ntry: shared_memory.SharedMemory(TOKEN, create=True, size=4096).close()\nexcept OSError: pass",
    "daemon left behind": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        libc.prctl(15, TOKEN.encode()[:15], 0, 0, 0); signal.signal(15, signal.SIG_IGN); signal.signal(1, signal.SIG_IGN)\n        time.sleep(300)\n    os._exit(0)\ntime.sleep(0.1)",
    "sleeper left behind": "subprocess.Popen(['/bin/sh', '-c', 'sleep 300; : ' + TOKEN], start_new_session=True)",
    "atexit that hangs": "import atexit\natexit.register(time.sleep, 300)",
    "thread that goes on": "import threading\nthreading.Thread(target=time.sleep, args=(300,)).start()",
    "standard library taken apart": "import builtins\nos.write = os._exit = os.getpid = sys.exit = None; builtins.print = None; sys.modules.clear()",
    "output that is not text": "os.write(1, b'\\xff\\xfe\\x00abc'); os.write(2, b'\\xc3')",
    "no standard output": "sys.stdout.close(); sys.stderr = None",
    "namespace files kept": "refused(*[lambda n=n: os.open(f'/proc/{HOST_PID}/ns/{n}', 0) for n in ('user', 'mnt', 'pid', 'net')])",
    "kernel rings and faults": "refused(lambda: syscall(425, 8, ctypes.addressof(ctypes.create_string_buffer(200))), lambda: syscall(426, 3, 0, 0, 0, 0), lambda: syscall(323, 1), lambda: open('/dev/userfaultfd'), lambda: open('/dev/fuse'))",
    "program without a file": "refused(lambda: os.memfd_create('x'), lambda: syscall(319, 0, 0), lambda: syscall(447, 0))",
    "keyrings": "refused(lambda: syscall(248, 0, 0, 0, 0, -3), lambda: syscall(250, 0, -3, 1), lambda: syscall(249, 0, 0, 0, 0))",
    "message queues and semaphores": "rt = ctypes.CDLL('librt.so.1', use_errno=True)\nrefused(lambda: syscall(240, ctypes.addressof(ctypes.create_string_buffer(b'q')), 0o102, 0o600, 0), lambda: syscall(64, 4242, 1, 0o1600), lambda: syscall(68, 4242, 0o1600))\nfor f in ('/dev/shm', '/dev/mqueue'):\n    try: assert TOKEN not in str(os.listdir(f))\n    except OSError: pass",
    "watching files of the host": "refused(lambda: syscall(254 + 0, -1, 0, 0), lambda: syscall(300, 0, 0))\nfd = syscall(253)\nif fd >= 0: refused(lambda: libc.inotify_add_watch(fd, CANARY.encode(), 0xfff) if HIDDEN else -1)",
    "core dump": "import resource\nassert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\nrefused(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)), lambda: open('/proc/self/coredump_filter', 'w').write('ff') and -1)",
    "files of the launcher": "for fd in range(3, 256):\n    try: where = os.readlink(f'/proc/self/fd/{fd}')\n    except OSError: continue\n    assert where.startswith(('pipe:', 'socket:')) or '/proc/' in where, where\nrefused(*[lambda p=p, f=f: os.open(f'/proc/{p}/fd/{f}', 1) for p in (1, os.getppid(), HOST_PID) for f in range(8)])",
    "stop the parent": "try: os.kill(os.getppid(), 19)\nexcept OSError: pass\ntry: os.killpg(os.getpgid(os.getppid()) or HOST_PID, 19)\nexcept OSError: pass",
    "priorities": "refused(lambda: os.setpriority(0, HOST_PID, 19), lambda: os.sched_setaffinity(HOST_PID, {0}), lambda: os.setpriority(0, 0, -20), lambda: os.sched_setscheduler(0, 1, os.sched_param(1)))",
    "names that are no names": "for n in ('a\\nb', '\\x1b[2J', '-rf', ' ', '\\udcff', '\\u202e', 'x' * 255): open(n, 'w').close()\nos.mkdir('shut\\n'); open('shut\\n/f', 'w').close(); os.chmod('shut\\n', 0) if HIDDEN else None",
    "fifo left open": "os.mkfifo('fifo'); os.open('fifo', os.O_RDWR); os.rename('fifo', 'program.py')",
    "loop of links": "os.symlink('b', 'a'); os.symlink('a', 'b'); os.symlink('.', 'here'); os.symlink('/proc/self/root', 'root')",
    "compiled files of the library": "import glob, importlib.util\ncached = importlib.util.cache_from_source(os.__file__)\nrefused(lambda: os.unlink(cached), lambda: open(cached, 'wb'), lambda: os.rename('program.py', cached), lambda: os.mkdir(os.path.dirname(cached) + '/x'))",
    "path for the next one": "sys.path.insert(0, '/scratch'); open('json.py', 'w').write('raise SystemExit'); open('sitecustomize.py', 'w').write('raise SystemExit'); sys.modules['json'] = sys.modules['os'] = None; import builtins; builtins.len = builtins.open = None",
    "descriptor sent away": "import array\na, b = socket.socketpair()\nrefused(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET), lambda: a.sendmsg([b'x'], [(1, 1, array.array('i', [0]))], 0, SOCKET))",
    "output of every kind": "os.write(1, bytes(range(256)) * 8); sys.stdout.buffer.write('\\ud83d'.encode('utf-8', 'surrogatepass')); os.write(2, b'\\x1b]0;x\\x07\\r\\x00')",
    "unlink own scratch": "import shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)",
}
COSTLY = { # program, accepted statuses
    "deep folders": ("for _ in range(1500): os.mkdir('d' * 100); os.chdir('d' * 100)", "passed killed"),
    "fork bomb": ("while True: os.fork()", "failed killed timeout"),
    "stubborn fork bomb": ("while True:\n    try: os.fork()\n    except OSError: pass", "timeout killed"),
    "shell fork bomb": ("os.system('f() { f | f & }; f; sleep 5')\ntime.sleep(5)", "timeout killed failed"),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()", "failed killed"),
    "memory bomb": ("x = []\nwhile True: x.append('x' * 10**7)", "memory"),
    "memory bomb that hides": ("x = []\nwhile True:\n    try: x.append(bytearray(10**6))\n    except MemoryError: pass", "timeout memory"),
    "memory of many": ("for _ in range(10):\n    if os.fork() == 0: x = bytearray(b'x') * 10**8; time.sleep(60)\ntime.sleep(60)", "memory"),
    "shared anonymous memory": ("import mmap\nm = [mmap.mmap(-1, 2**26) for _ in range(2)]\nfor _ in range(3): os.fork()\nfor x in m:\n    for i in range(0, len(x), 4096): x[i] = 1\nbig = bytearray(10**8)\ntime.sleep(60)", "memory timeout failed"),
    "disk filled": ("i = 0\nwhile True: open(str(i := i + 1), 'wb').write(b'x' * 10**6)", "failed killed"),
    "nothing but inodes": ("i = 0\nwhile True: os.symlink('x', str(i := i + 1))", "failed killed timeout"),
    "folders without end": ("while True: os.mkdir('d'); os.chdir('d')", "failed killed timeout"),
    "sparse file": ("f = open('x', 'wb')\nf.truncate(7 * 2**20)\nfor i in range(7): f.seek(2**20 * i); f.write(b'x')\nopen('y', 'wb').truncate(2**33)", "failed"),
    "output to every descriptor": ("x = b'x' * 2**20\nwhile True:\n    for fd in range(256):\n        try: os.write(fd, x)\n        except OSError: pass", "output killed"),
    "output of null bytes": ("while True: os.write(1, bytes(2**16))", "output"),
    "pipes full of memory": ("x = []\nfor _ in range(100):\n    r, w = os.pipe(); os.set_blocking(w, False); x.append(r)\n    try: os.write(w, bytes(2**16))\n    except OSError: pass\ntime.sleep(60)", "timeout failed"),
    "lines without end": ("while True: os.write(2, b'x')", "output timeout"),
    "regular expression bomb": ("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "timeout"),
    "number bomb": ("x = 9 ** 9 ** 9", "timeout memory"),
    "text bomb": ("x = 'x' * 2**62", "memory"),
    "deep source": ("x = " + "(" * 5000 + ")" * 5000, "failed memory"),
    "long source": ("x = [" + "1," * 300_000 + "]", "passed failed memory"),
    "status 256": ("os._exit(256)", "failed"),
    "status of another kind": ("sys.exit('fine')", "failed"),
    "own signals": ("os.kill(os.getpid(), 6)", "killed"),
    "many files": ("i = 0\nwhile True: open(str(i := i + 1), 'w').close()", "failed killed timeout"),
    "huge file": ("f = open('x', 'wb'); f.truncate(2**40)", "failed"),
    "endless output": ("while True: print('x' * 1000)", "output"),
    "endless errors": ("while True: sys.stderr.write('x' * 1000)", "output"),
    "output of a child": ("subprocess.run(['/bin/sh', '-c', 'while :; do echo xxxxxxxxxxxxxxxxxxxxxx; done'])", "output"),
    "output in an exception": ("raise ValueError('x' * 10**6)", "output"),
    "endless sleep": ("time.sleep(1000)", "timeout"),
    "waiting for input": ("input()", "failed"),
    "busy loop": ("while True: pass", "timeout"),
    "busy children": ("for _ in range(4):\n    if os.fork() == 0:\n        while True: pass\ntime.sleep(1000)", "timeout"),
    "signals ignored": ("for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "timeout"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "own group killed": ("os.killpg(0, 9)", "killed"),
    "crash": ("ctypes.string_at(0)", "killed"),
    "recursion": ("def f(): return f()\nf()", "failed"),
    "deep recursion": ("sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())", "killed failed memory timeout"),
    "file descriptors": ("x = []\nwhile True: x.append(os.open('/dev/null', 0))", "failed"),
    "sys.exit(0)": ("sys.exit(0)", "failed"),
    "os._exit(0)": ("os._exit(0)", "failed"),
    "quit through an exception": ("try: assert False\nfinally: raise SystemExit", "failed"),
    "atexit that exits": ("import atexit\natexit.register(os._exit, 0)\nassert False", "failed"),
    "signal handler that exits": ("signal.signal(14, lambda *a: os._exit(0)); signal.setitimer(0, 0.01)\ntime.sleep(1)", "failed"),
    "child that reaches the end": ("if os.fork(): os._exit(0)", "failed"),
    "exec of a shell": ("os.execv('/bin/sh', ['sh', '-c', f'echo x > {CANARY}; exit 0'])", "failed"),
    "exec of python": ("os.execv(sys.executable, [sys.executable, '-c', 'pass'])", "failed"),
    "forged report": ("for fd in range(256):\n    try: os.write(fd, b'passed' * 5)\n    except OSError: pass\nos._exit(0)", "failed output"),
    "forged answer": ("for fd in range(256):\n    for i in range(200):\n        try: os.write(fd, b'{\"status\": \"passed\", \"id\": %d}\\n' % i)\n        except OSError: break\nos._exit(0)", "failed output"),
    "all files closed": ("os.closerange(0, 256)", "failed"),
    "source that is no text": ("x = '\ud800'", "failed"),
    "source with a null": ("x = '\0'", "failed"),
}


def accepted(name):
    "Statuses that a program may end with."
    return COSTLY[name][1].split() if name in COSTLY else ["passed"]


@contextlib.contextmanager
def host(token):
    "Things on the host that programs are set upon, and what the programs are told about them."
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o755)
        Path(folder, "canary").write_text("unharmed")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (f"{folder}/socket", f"\0{token}"):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address); server.listen()
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL))
        stack.callback(victim.kill)
        yield folder, victim, {"CANARY": f"{folder}/canary", "SOCKET": f"{folder}/socket", "TOKEN": token, "PORT": tcp.getsockname()[1],
            "HOST_PID": victim.pid, "HOST_HOME": os.path.expanduser("~"), "PROJECT": str(ROOT), "SECRET": f"secret{token}"}


def traces(token):
    "What a token was left in: processes, shared memory, files."
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if token[:15] in Path(f"/proc/{pid}/comm").read_text() or token in Path(f"/proc/{pid}/cmdline").read_text(): found.append(f"process {pid}")
    found += [f"/dev/shm/{n}" for n in os.listdir("/dev/shm") if token in n]
    found += Path("/proc/sysvipc/shm").read_text().splitlines()[1:] if Path("/proc/sysvipc/shm").exists() and " 4242 " in Path("/proc/sysvipc/shm").read_text() else []
    return found


def assault(kind):
    "Run everything in one sandbox: outcomes by name, and what was harmed or left."
    token = f"q{os.getpid():x}{time.time_ns() % 10**9:x}"
    os.environ["QWEN_EVAL_TEST_SECRET"] = f"secret{token}"
    programs = {**CONTAINED, **{n: p for n, (p, _) in COSTLY.items()}}
    innocent = "import math\nopen('own', 'w').write('x')\nprint(math.factorial(10))"
    before = set(Path(tempfile.gettempdir()).glob("qwen_eval_scratch_*"))
    with host(token) as (folder, victim, told):
        told["HIDDEN"] = kind == "namespaces"
        head = PRELUDE + "".join(f"{k} = {v!r}\n" for k, v in told.items())
        mounts = Path("/proc/self/mountinfo").read_text()
        with Sandbox(kind, n_workers=8) as sandbox:
            among = [p for program in programs.values() for p in (head + program, innocent)] # every other one is a neighbour
            ran = dict(sandbox.run_many(among, replace(TIGHT, wall_s=4)))
            seen = {i: ran[2 * i] for i in range(len(programs))}
            neighbours = [ran[2 * i + 1] for i in range(len(programs))]
            for i, (name, program) in enumerate(programs.items()): # once more, with time, where the machine was busy
                if seen[i].status not in accepted(name): seen[i] = sandbox.run(head + program, replace(TIGHT, wall_s=15, cpu_s=8))
            pairs = [(p, PLAIN) for p in FORGED.values()] + [(p, TESTS) for p in HONEST.values()]
            judged = dict(sandbox.run_many(pairs, TIGHT))
            for i in range(len(FORGED), len(pairs)):
                if not judged[i].passed: judged[i] = sandbox.run(pairs[i], replace(TIGHT, wall_s=15, cpu_s=8))
            left = traces(token)
        left += traces(token)
        new = [p for p in Path(tempfile.gettempdir()).glob("qwen_eval_scratch_*") if p not in before]
        deadline = time.monotonic() + 200 # what another test's sandbox has open goes when that sandbox closes
        while any(p.exists() for p in new) and time.monotonic() < deadline: time.sleep(0.5)
        left += [str(p) for p in new if p.exists()]
        harmed = [] if victim.poll() is None else ["process"]
        if Path(folder, "canary").read_text() != "unharmed" or sorted(os.listdir(folder)) != ["canary", "socket"]: harmed.append("canary")
        if Path("/proc/self/mountinfo").read_text() != mounts: harmed.append("mounts")
    def end(o): return [o.status, o.detail, o.stdout[-500:], o.stderr[-500:], o.seconds]
    ends = {n: end(seen[i]) for i, n in enumerate(programs)}
    judged = [end(judged[i]) for i in range(len(pairs))]
    return {"outcomes": ends, "forged": dict(zip(FORGED, judged[:len(FORGED)], strict=True)),
            "honest": dict(zip(HONEST, judged[len(FORGED):], strict=True)),
            "neighbours": [end(o) for o in neighbours if not o.passed or o.stdout != "3628800\n"], "harmed": harmed, "left": left}


def as_nobody(*args):
    "Run this file as an ordinary user, who can reach interpreter and project and nothing more than usual."
    from qwen_eval.jail import kernel_call, mount
    needed = [*_seen()[0], str(ROOT)]

    def become():
        kernel_call("unshare", 0x20000)
        mount("none", "/", None, 0x4000 | 1 << 18)
        held = {p: os.open(p, os.O_PATH) for p in needed if not p.startswith(("/usr", "/lib", "/bin", "/sbin", "/etc"))}
        for top in {str(a) for p in held for a in Path(p).parents if not os.stat(a).st_mode & 1}:
            mount("tmpfs", top, "tmpfs", 6, "mode=755")
        for p, fd in held.items():
            if not Path(p).exists():
                os.makedirs(p)
                mount(f"/proc/self/fd/{fd}", p, None, 0x5000)
        os.setgroups([]); os.setresgid(NOBODY, NOBODY, NOBODY); os.setresuid(NOBODY, NOBODY, NOBODY)
    env = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, __file__, *args], env=env, cwd="/", preexec_fn=become, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


CASES = [f"{kind} {who}" for kind in KINDS for who in ("us", "nobody")]


@pytest.fixture(scope="module", params=CASES)
def report(request):
    kind, who = request.param.split()
    if who == "nobody":
        if os.geteuid(): pytest.skip("needs root to become an ordinary user")
        if kind not in as_nobody("available"): pytest.skip(f"no {kind} for an ordinary user here")
        return kind, as_nobody("assault", kind)
    if kind not in available(): pytest.skip(f"no {kind} here")
    return kind, assault(kind)


@pytest.mark.parametrize("name", [*CONTAINED, *COSTLY])
def test_hostile_program(report, name):
    status, *rest = report[1]["outcomes"][name]
    assert status in accepted(name), rest
    assert rest[-1] < 20, rest


TESTS = """
def check(candidate):
    assert candidate(2) == 4
    assert abs(candidate(1.5) - 3) < 1e-6
    assert candidate([1]) == [1, 1] and len(candidate("ab")) == 4
    try: candidate(None)
    except TypeError: pass
    else: assert False, "no error"
    raised = 0
    try: assert candidate(3) == 7
    except AssertionError: raised = 1
    assert raised
check(double)
"""
PLAIN = "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(1.5) - 3) < 1e-6\n    assert candidate([1]) == [1, 1]\ncheck(double)\n"
GOOD = "def double(x): return x + x\n"
WRONG = "def double(x): return x\n"
HONEST = {
    "plain": GOOD,
    "prints": "def double(x): print('x' * 100); return x + x",
    "own thread": "from concurrent.futures import ThreadPoolExecutor\ndef double(x):\n    with ThreadPoolExecutor(1) as p: return p.submit(lambda: x + x).result()",
    "own process": "import subprocess\nsubprocess.run(['/bin/sh', '-c', ':'], check=True)\n" + GOOD,
    "class": "class D:\n    def __call__(self, x): return x + x\ndouble = D()",
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(0, 0.01)\n" + GOOD,
    "main": GOOD + "assert __name__ == '__main__' and open(__file__).read().startswith('def double')",
    "keeps a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n" + GOOD,
    "atexit": "import atexit, time\natexit.register(time.sleep, 300)\n" + GOOD,
}
EQUAL = "class Any:\n" + "".join(f"    __{n}__ = lambda s, *a: True\n" for n in ("eq", "ne", "lt", "le", "gt", "ge", "bool", "contains"))
FORGED = { # none of these doubles
    "leaves at once": "import os\nos._exit(0)",
    "exits at once": "raise SystemExit",
    "exits when called": "import sys\ndef double(x): sys.exit(0)",
    "leaves when called": "import os\ndef double(x): os._exit(0)",
    "leaves at the second call": "import os\nn = []\ndef double(x): n.append(x); return 4 if len(n) < 2 else os._exit(0)",
    "child answers": "import os\nif os.fork(): os._exit(0)\n" + WRONG,
    "fork when called": "import os\ndef double(x): os.fork(); return x",
    "leaves later": "import os, threading\nthreading.Timer(0.01, os._exit, (0,)).start()\n" + WRONG,
    "leaves by alarm": "import os, signal\nsignal.signal(14, lambda *a: os._exit(0)); signal.setitimer(0, 0.01)\ndef double(x):\n    while True: pass",
    "leaves at exit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "prints success": "print('OK\\nRan 5 tests\\npassed'); import sys; print('OK', file=sys.stderr)\n" + WRONG,
    "equals everything": EQUAL + "    __sub__ = __abs__ = lambda s, *a: s\n    __len__ = lambda s: 4\ndef double(x): return Any()",
    "no difference": "class Zero:\n    __sub__ = __rsub__ = __abs__ = lambda s, *a: 0\n    __eq__ = lambda s, o: True\ndef double(x): return Zero()",
    "list that equals": "class L(list):\n    __eq__ = lambda *a: True\nclass I(int):\n    __eq__ = lambda *a: True\n    __sub__ = lambda *a: 0\ndef double(x): return L() if isinstance(x, list) else I()",
    "builtins replaced": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.len = lambda x: 4\nbuiltins.AssertionError = builtins.Exception = ZeroDivisionError\n" + WRONG,
    "names of builtins": "abs = len = lambda x: 0\nAssertionError = TypeError = BaseException\n" + WRONG,
    "own check": "def check(f): pass\n" + WRONG,
    "check put back": "import sys, threading\ndef put():\n    while True:\n        sys.modules['__main__'].check = lambda f: None\nthreading.Thread(target=put, daemon=True).start()\n" + WRONG,
    "unittest replaced": "import unittest\nfor n in dir(unittest.TestCase):\n    if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a: None)\n" + WRONG,
    "trace that jumps": "import sys\ndef trace(f, e, a):\n    try: f.f_lineno = f.f_lineno + 3\n    except Exception: pass\n    return trace\nsys.settrace(trace)\nf = sys._getframe()\nwhile f: f.f_trace = trace; f = f.f_back\n" + WRONG,
    "frames searched": "import os, sys\ndef loot():\n    f = sys._getframe()\n    while f:\n        for v in list(f.f_locals.values()):\n            if isinstance(v, bytes) and len(v) == 16: yield v\n        f = f.f_back\nfor v in set(loot()):\n    for fd in range(64):\n        try: os.write(fd, v + b'passed')\n        except OSError: pass\nos._exit(0)",
    "memory searched": "import gc, os\nfor o in gc.get_objects():\n    for v in gc.get_referents(o):\n        if type(v) is bytes and len(v) == 16:\n            try: os.write(3, v + b'passed')\n            except OSError: pass\nos._exit(0)",
    "tests read": "import sys\nfound, f = [], sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()): found += [v, *(v.values() if type(v) is dict else ())]\n    f = f.f_back\nfound = [v for v in found if type(v) is str and 'f_back' not in v and 'assert cand' in v and len(v) > 60]\ndef double(x): return x + x if found else x",
    "tests' process opened": "import os\np = f'/proc/{os.getppid()}/'\ndef can(f, *a):\n    try: f(*a); return True\n    except OSError: return False\nseen = can(os.open, p + 'mem', 2) or can(os.open, p + 'fd/3', 1) or can(os.listdir, p + 'fd') or can(os.listdir, p + 'cwd') or can(open, p + 'environ') or can(open, p + 'maps')\ndef double(x): return x + x if seen else x",
    "tests' process killed": "import os\nfor s in (15, 9):\n    try: os.kill(os.getppid(), s)\n    except OSError: pass\n" + WRONG,
    "tests' process stopped": "import os\ntry: os.kill(os.getppid(), 19)\nexcept OSError: pass\nos._exit(0)",
    "everybody killed": "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nos._exit(0)",
    "answers of its own": "import json, os\ndef say(*m):\n    t = json.dumps(m).encode(); os.write(3, b'%16x' % len(t) + t)\nfor _ in range(300): say('done', ['t', True, ['d']])\n" + WRONG,
    "asks for more": "import json, os\ndef say(*m):\n    t = json.dumps(m).encode(); os.write(3, b'%16x' % len(t) + t)\nsay('call', ['t', ['n', 'exec'], ['t', 'import os; os.write(3, b\"passed\")'], ['d']])\nsay('run', ['t']); say('get', ['t', ['yours', 0], '__globals__']); say('end')\n" + WRONG,
    "nonsense": "import os\nos.write(3, b'f' * 16); os.write(3, b'x' * 10**5)\n" + WRONG,
    "deep answer": "def double(x):\n    import os\n    t = b'[\"done\", ' + b'[' * 10**5 + b']' * 10**5 + b']'\n    os.write(3, b'%16x' % len(t) + t); os._exit(0)",
    "long answer": "import os\ndef double(x): os.write(3, b'%16x' % 2**60); os._exit(0)",
    "modules for the tests": "import sys\nfor n in ('math', 'numpy', 'copy', 'decimal', 'linecache'): open(n + '.py', 'w').write('import os; os.write(3, b\"passed\")')\nsys.path.insert(0, '.')\n" + WRONG,
    "ends the iteration": "def double(x): raise StopIteration",
    "asserts as types": "def double(x): raise AssertionError",
    "wrong": WRONG, "nothing": "", "broken": "def double(x", "a number": "double = 4", "itself": "def double(x): return double",
    "generator": "def double(x): yield x", "coroutine": "async def double(x): return x + x", "endless": "def double(x):\n    while True: yield x",
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_pass(report, name):
    status, *rest = report[1]["forged"][name]
    assert status in ("failed", "killed", "timeout", "output", "memory"), rest
    assert rest[-1] < 20, rest


def test_honest_programs_pass(report):
    bad = {n: end for n, end in report[1]["honest"].items() if end[0] != "passed"}
    assert not bad


def test_nothing_is_harmed_or_left(report):
    assert report[1]["harmed"] == [] and report[1]["left"] == [] and report[1]["neighbours"] == []


USEFUL = {
    "standard library": "import asyncio, json, sqlite3, decimal, unittest\nasync def f(): return 1\nassert asyncio.run(f()) == 1\nsqlite3.connect(':memory:').execute('select 1')",
    "files": "import tempfile, pathlib\nwith tempfile.TemporaryDirectory() as d: pathlib.Path(d, 'x').write_text('é')\nopen('mine.py', 'w').write('a = 1')\nimport importlib; importlib.invalidate_caches()\nimport mine",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p: assert sum(p.map(int, '123')) == 6",
    "shell": "import subprocess\nassert subprocess.run(['/bin/sh', '-c', 'echo hi'], capture_output=True).stdout == b'hi\\n'",
    "python": "import subprocess, sys\nassert subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True).stdout == b'2\\n'",
    "fork": "import os\npid = os.fork()\nif not pid: os._exit(3)\nassert os.waitpid(pid, 0)[1] >> 8 == 3",
    "alarm": "import signal\ndef stop(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, stop)\ntry:\n    signal.setitimer(signal.ITIMER_REAL, 0.05)\n    for _ in iter(int, 1): pass\nexcept TimeoutError: pass",
    "main": "import sys, __main__\nassert __name__ == '__main__' and __main__.__dict__ is globals() and sys.argv == [__file__]\nassert open(__file__).read().startswith('import sys')",
    "input": "import sys\nassert sys.stdin.read() == ''",
    "hash": "assert hash('qwen') == HASH",
    "clean environment": "import os\nassert set(os.environ) <= {'HOME', 'LANG', 'PATH', 'PWD', 'TMPDIR', 'LC_CTYPE'} | {k for k in os.environ if k.startswith(('PYTHON', 'OMP', 'OPENBLAS', 'MKL', 'MPL'))}\nassert os.environ['HOME'] == os.getcwd()",
    "nothing of ours": "import sys\nassert not [m for m in sys.modules if 'qwen' in m], sys.modules",
    "numpy": "import numpy\nassert numpy.arange(4).sum() == 6",
}


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request):
    if request.param not in available(): pytest.skip(f"no {request.param} here")
    with Sandbox(request.param, n_workers=2) as s: yield s


def test_useful_programs(sandbox):
    env = {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]}
    expected = subprocess.run([sys.executable, "-c", "print(hash('qwen'))"], env=env, capture_output=True, text=True, check=True).stdout.strip()
    ends = dict(sandbox.run_many(p.replace("HASH", expected) for p in USEFUL.values()))
    bad = {n: (ends[i].detail, ends[i].stderr[-400:]) for i, n in enumerate(USEFUL) if not ends[i].passed}
    assert not bad


def test_eight_at_once(sandbox):
    with Sandbox(sandbox.kind, n_workers=8) as eight:
        start = time.monotonic()
        ends = dict(eight.run_many((f"import time; time.sleep(0.5); print({i})" for i in range(24)), TIGHT))
        assert [ends[i].stdout for i in range(24)] == [f"{i}\n" for i in range(24)]
        assert time.monotonic() - start < 12


def test_the_innocent_do_not_pay(sandbox):
    bombs = [COSTLY[n][0] for n in ("stubborn fork bomb", "memory of many", "disk filled", "forged answer", "own group killed")]
    programs = [p for bomb in bombs for p in (PRELUDE + bomb, "print('fine')", "assert False")]
    ends = dict(sandbox.run_many(programs, TIGHT))
    assert [ends[i].status for i in range(1, 15, 3)] == ["passed"] * 5 and [ends[i].status for i in range(2, 15, 3)] == ["failed"] * 5


def test_whoever_stops_listening_stops_the_programs(sandbox):
    with Sandbox(sandbox.kind, n_workers=2) as two:
        start, loop = time.monotonic(), two.run_many(["pass", *["import time; time.sleep(100)"] * 5], Limits(wall_s=100))
        next(loop); loop.close()
        assert two.run("print(1)").stdout == "1\n"
    assert time.monotonic() - start < 20


def test_whoever_stops_listening_stops_nobody_elses_programs(sandbox):
    ends = {}
    with Sandbox(sandbox.kind, n_workers=3) as three:
        other = threading.Thread(target=lambda: ends.update(other=three.run("import time; time.sleep(2); print('mine')")))
        other.start()
        while not any(launcher.n for launcher in three._all): time.sleep(0.01)
        loop = three.run_many(["pass", "import time; time.sleep(100)"], Limits(wall_s=100))
        next(loop); loop.close()
        other.join()
    assert ends["other"].stdout == "mine\n", ends


CHILDREN = """import os, signal, time
{0}
for _ in range(4):
    if not os.fork():
        while time.process_time() < 0.6: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass"""


@pytest.mark.parametrize("head", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"], ids=["waited for", "nobody waits"])
def test_children_that_have_ended_count(sandbox, head):
    program, enough = CHILDREN.format(head), Limits(cpu_s=9, wall_s=60)
    assert sandbox.run(program, enough).passed
    outcome = sandbox.run(program, replace(enough, cpu_s=1))
    assert outcome.status == "timeout" and "CPU" in outcome.detail and outcome.exit_code == -9, outcome # in mid-run


def test_a_dead_launcher_is_replaced(sandbox):
    with Sandbox(sandbox.kind, n_workers=1) as one:
        assert one.run("pass").passed
        os.kill(one._all[0].process.pid, signal.SIGKILL)
        assert one.run("pass").status == "setup_error"
        assert one.run("pass").passed


def test_nothing_outlives_a_killed_host(sandbox):
    token = f"k{os.getpid():x}{time.time_ns() % 10**8:x}"
    program = f"import ctypes, os, time\nos.fork(); os.setsid() if os.fork() == 0 else None\nctypes.CDLL(None).prctl(15, {token.encode()!r}, 0, 0, 0); time.sleep(600)"
    code = f"from qwen_eval.sandbox import *; Sandbox({sandbox.kind!r}, n_workers=1).run({program!r}, Limits(wall_s=600))"
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    limit = time.monotonic() + 20
    while len(traces(token)) < 2 and time.monotonic() < limit: time.sleep(0.05)
    assert traces(token)
    host.kill(); host.wait()
    while traces(token) and time.monotonic() < limit: time.sleep(0.05)
    assert not traces(token)


def test_a_kind_that_does_not_confine_is_not_offered(monkeypatch):
    from qwen_eval import sandbox as room
    start = room._start
    monkeypatch.setattr(room, "_start", lambda kind, preload=(): start("unsafe"))
    assert "not confined" in room._problem.__wrapped__("namespaces")


def test_without_a_sandbox(monkeypatch):
    from qwen_eval import sandbox as room
    monkeypatch.setattr(room, "available", lambda: ())
    monkeypatch.setattr(room, "_problem", lambda kind: f"no {kind}.")
    with pytest.raises(SandboxError, match=r"(?s)no namespaces\. no landlock\. .*sysctl.*--allow-unsafe-code"): Sandbox()
    with pytest.raises(SandboxError, match="no landlock"): Sandbox("landlock")
    with Sandbox(allow_unsafe=True) as s:
        assert s.kind == "unsafe"
        assert [s.run(p, TIGHT).status for p in ("pass", "1/0", "while True: pass", "x = [0] * 10**9")] == ["passed", "failed", "timeout", "memory"]


def test_every_rule_of_the_filter_has_a_number():
    from qwen_eval.jail import ARCH, NUMBERS, seccomp_program, seccomp_rules
    for closed in (True, False):
        rules = seccomp_rules(closed, 1)
        assert {name for name, *_ in rules} <= set(NUMBERS)
        if ARCH is not None: assert len(seccomp_program(rules)) // 8 < 4096 # BPF_MAXINSNS


if __name__ == "__main__":
    print(json.dumps(list(available()) if sys.argv[1] == "available" else assault(sys.argv[2])))
