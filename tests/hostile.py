"""Verifier functions and responses that do harm, and the verdicts that may come of them."""

HOSTILE_FILE = r'''
import ctypes, fcntl, gc, json, mmap, os, pathlib, resource, signal, socket, struct, subprocess, sys, tempfile
import threading, time, warnings
from decimal import Decimal
from fractions import Fraction
from srft_ray.verify import Verdict

LIBC = ctypes.CDLL(None)
SLEEP = ["sleep", "61.37"]

def spin():
    while True:
        pass

# The bombs are bounded: where the limits fail, the machine must live on.
def fork_bomb():
    for _ in range(8):
        os.fork()
    time.sleep(9)

def children(count, **options):
    for _ in range(count):
        subprocess.Popen(SLEEP, **options)
    time.sleep(9)

def forks_until_refused():
    """The kernel's own limit, which comes before the supervisor's look at what there is."""
    count = 0
    while count < 700:
        try:
            if os.fork() == 0:
                signal.pause()
            count += 1
        except OSError:
            return Verdict("match", 1.0, str(count))

def daemon():
    """A double fork in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", SLEEP)
        os._exit(0)
    os.wait()

def all_fds():
    return [int(fd) for fd in os.listdir("/proc/self/fd")]

def write_everywhere(data):
    for fd in all_fds():
        if fd > 2:
            try:
                os.set_blocking(fd, False)
                os.write(fd, data)
            except OSError:
                pass

def deep(n=0):
    return deep(n + 1)

def deep_in_c():
    kind = ctypes.CFUNCTYPE(None)
    call = kind(lambda: call())
    sys.setrecursionlimit(10**9)
    call()

def nested_folders():
    for _ in range(2000):
        os.mkdir("d"); os.chdir("d")

def replace_folder():
    here = os.getcwd()
    os.chdir("/")
    os.rmdir(here)
    os.symlink("/etc", here)

def huge_file():
    with open("huge", "wb") as file:
        while True:
            file.write(bytes(2**20))

def many_files():
    for n in range(5000):
        open(f"file-{n}", "w").close()

def unreadable():
    os.makedirs("a/b/c"); open("a/b/c/d", "w").close(); os.chmod("a/b", 0); os.chmod("a", 0)

def no_exit_thread():
    threading.Thread(target=spin, daemon=True).start()
    return 1.0

def killer_thread():
    threading.Timer(0.05, lambda: os._exit(3)).start()
    return 1.0

def threads():
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
    return 1.0

def later_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return 1.0

def deaf():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    LIBC.prctl(1, 0)
    while True:
        try:
            spin()
        except BaseException:
            pass

def tracer(*args):
    return tracer

class Evil:
    def __init__(self, **acts):
        self.acts = acts
    def act(self, name):
        return self.acts[name]()
    def __float__(self): return self.act("float")
    def __str__(self): return self.act("str")
    def __repr__(self): return self.act("str")
    def __eq__(self, other): return True
    def __hash__(self): return hash("match")
    def __len__(self): spin()
    def __bool__(self): spin()
    def __reduce__(self): return os._exit, (0,)

class Text(str):
    def __str__(self): return self
    def __eq__(self, other): return True
    def __hash__(self): return hash("match")
    def __len__(self): spin()

class Raises(Exception):
    def __str__(self): raise SystemExit
    __repr__ = __str__

class Stubborn(BaseException):
    def __str__(self): spin()

def throw(error):
    raise error

def outside(path):
    pathlib.Path(path, f"left-{os.getpid()}-{time.time_ns()}").write_text("x")

def connect(port):
    socket.create_connection(("127.0.0.1", port), timeout=0.2).sendall(b"hello")

def serve_network():
    server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen()
    return 1.0

def print_much(stream):
    while True:
        print("\x1b]0;title\x07\x1b[2J" * 1000, file=stream)

def kill_all():
    if os.getpid() == 1:  # in a process namespace; anywhere else this would end the machine's other work
        os.kill(-1, signal.SIGKILL)

def kill_supervisor():
    os.kill(os.getppid() or os.getpid(), signal.SIGKILL)

def read_only_off():
    assert LIBC.mount(None, b"/", None, 32, None) == -1, "remounted"
    assert LIBC.umount2(os.getcwd().encode(), 2) == -1, "unmounted"
    assert LIBC.unshare(0x20000) == -1, "unshared"
    return 1.0

def no_secret():
    found = [name for name in os.environ if "SECRET" in name]
    return Verdict("match", 1.0, ",".join(found))

ACTS = {
    # Results that are none.
    "none": lambda: None, "text": lambda: "1.0", "bytes": lambda: b"1", "list": lambda: [1.0],
    "tuple": lambda: ("match", 1.0, None), "dict": lambda: {"verdict": "match"}, "class": lambda: Verdict,
    "complex": lambda: 1j, "generator": lambda: (x for x in ()), "ellipsis": lambda: ..., "set": lambda: {1},
    "nan": lambda: float("nan"), "inf": lambda: float("inf"), "minus inf": lambda: -float("inf"),
    "1e39": lambda: 1e39, "-1e300": lambda: -1e300, "10**400": lambda: 10**400,
    "10**100000": lambda: 10**10**5,
    "fraction": lambda: Fraction(10**400), "decimal nan": lambda: Decimal("NaN"),
    "decimal snan": lambda: Decimal("sNaN"), "decimal 1e500": lambda: Decimal("1e500"),
    "verdict nan": lambda: Verdict("match", float("nan"), None),
    "verdict none": lambda: Verdict("match", None, None), "verdict text": lambda: Verdict("match", "x", None),
    "given": lambda: Verdict("given", 1.0, None), "verdict list": lambda: Verdict(["match"], 1.0, None),
    "verdict int": lambda: Verdict(1, 1.0, None), "unjudged": lambda: Verdict("unjudged", 1.0, None),
    # Objects with methods of their own.
    "float raises": lambda: Evil(float=lambda: 1 / 0), "float spins": lambda: Evil(float=spin),
    "float exits": lambda: Evil(float=lambda: os._exit(0)), "float text": lambda: Evil(float=lambda: "1"),
    "float nan": lambda: Evil(float=lambda: float("nan")),
    "equal to all": lambda: Verdict(Evil(str=lambda: "given"), 1.0, None),
    "text equal to all": lambda: Verdict(Text("given"), 1.0, None),
    "verdict spins": lambda: Verdict(Evil(str=spin), 1.0, None),
    "reward spins": lambda: Verdict("match", Evil(float=spin), None),
    "answer raises": lambda: Verdict("match", 1.0, Evil(str=lambda: 1 / 0)),
    "answer spins": lambda: Verdict("match", 1.0, Evil(str=spin)),
    "answer is no text": lambda: Verdict("match", 1.0, Evil(str=lambda: 7)),
    "answer text": lambda: Verdict("match", 1.0, Text("five")),
    "pickle": lambda: Evil(float=lambda: 1.0, str=lambda: "x"),
    # Answers.
    "answer surrogate": lambda: Verdict("match", 1.0, "a\ud800b\udfff"),
    "answer escapes": lambda: Verdict("match", 1.0, "\x1b[2J\x1b]0;x\x07[/red]\x9b31m\x00\r\u202e"),
    "answer huge": lambda: Verdict("match", 1.0, "x" * 10**7),
    "answer huge astral": lambda: Verdict("match", 1.0, "\U0001f600" * 10**6),
    "answer control": lambda: Verdict("match", 1.0, "\x01" * 10**6),
    "answer number": lambda: Verdict("match", 1.0, 10**3000),
    "answer too long a number": lambda: Verdict("match", 1.0, 10**5000),
    "answer bytes": lambda: Verdict("match", 1.0, b"\xff"),
    # Errors.
    "raise": lambda: 1 / 0, "exit": lambda: os._exit(0), "sys exit": lambda: sys.exit(0),
    "interrupt": lambda: throw(KeyboardInterrupt()), "generator exit": lambda: throw(GeneratorExit()),
    "raises in str": lambda: throw(Raises()), "spins in str": lambda: throw(Stubborn()),
    "memory error": lambda: throw(MemoryError()), "group": lambda: throw(ExceptionGroup("x", [Raises()])),
    "recursion": deep, "recursion in c": deep_in_c, "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "kill self": lambda: os.kill(os.getpid(), signal.SIGKILL), "stop self": lambda: signal.raise_signal(19),
    "warnings": lambda: [warnings.warn(str(n)) for n in range(10**4)] and 1.0,
    # Time and memory.
    "spin": spin, "sleep": lambda: time.sleep(99), "deaf": deaf, "pause": lambda: LIBC.pause(),
    "regex": lambda: __import__("re").match("(a+)+$", "a" * 64 + "b"), "integers": lambda: 9**9**9,
    "lock": lambda: [lock := threading.Lock(), lock.acquire(), lock.acquire()],
    "alarm": lambda: [signal.alarm(1), signal.signal(signal.SIGALRM, signal.SIG_IGN), time.sleep(99)],
    "memory": lambda: bytearray(10**12),
    "memory slowly": lambda: [bytearray(10**7) for _ in range(10**6)],
    "mapping": lambda: mmap.mmap(-1, 10**12), "long list": lambda: [0] * 10**11,
    "string": lambda: "x" * 10**11, "garbage": lambda: [gc.disable(), [[] for _ in range(10**9)]],
    "pipe": lambda: os.read(os.pipe()[0], 1), "stdin": lambda: sys.stdin.read() or None,
    # Processes.
    "fork bomb": fork_bomb, "children": lambda: children(150), "daemon": daemon,
    "detached bomb": lambda: children(150, start_new_session=True), "forks": forks_until_refused,
    "child": lambda: subprocess.Popen(SLEEP) and 1.0,
    "detached": lambda: subprocess.Popen(SLEEP, start_new_session=True) and 1.0,
    "detached, empty environment": lambda: subprocess.Popen(SLEEP, start_new_session=True, env={}) and 1.0,
    "child of a shell": lambda: os.system("(sleep 61.37 &) ; (setsid sleep 61.37 &)") + 1.0,
    "exec": lambda: os.execvp("sleep", SLEEP), "own session": lambda: [os.fork() or os.setsid(), spin()],
    "threads": threads, "thread that spins": no_exit_thread, "thread that exits": killer_thread,
    "kill all": kill_all, "kill supervisor": kill_supervisor,
    "no death signal": lambda: LIBC.prctl(1, 0) or spin(),
    "later alarm": later_alarm, "nice": lambda: os.nice(-20), "core": lambda: resource.setrlimit(4, (-1, -1)),
    "more memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "subreaper": lambda: LIBC.prctl(36, 1) or daemon(),
    # Files of the process.
    "close all": lambda: os.closerange(0, 4096),
    "close all and sleep": lambda: [os.closerange(0, 99), spin()],
    "open all": lambda: [open("/dev/null") for _ in range(10**5)],
    "garbage everywhere": lambda: write_everywhere(b"garbage" * 99),
    "forged reply": lambda: write_everywhere(b'00000000' + b'0["match", 1.0, null]'),
    "forged error": lambda: [write_everywhere(b'0["error", 0.0, null]'), 1.0][1],
    "big packet": lambda: write_everywhere(b"x" * 10**5), "half a message": lambda: write_everywhere(b"\0\0"),
    "dup": lambda: [os.dup2(os.open("/dev/null", 1), fd) for fd in all_fds() if fd > 2],
    "no stdout": lambda: [setattr(sys, "stdout", None), setattr(sys, "stderr", None), 1.0][2],
    "print": lambda: print_much(sys.stdout), "print errors": lambda: print_much(sys.stderr),
    "system print": lambda: os.system("yes"), "trace": lambda: sys.settrace(tracer) or 1.0,
    "change folder": lambda: os.chdir("/") or 1.0, "no environment": lambda: os.environ.clear() or 1.0,
    # Files.
    "many files": many_files, "huge file": huge_file, "nested folders": nested_folders,
    "unreadable": unreadable, "replaced folder": replace_folder, "fifo": lambda: os.mkfifo("f") or open("f"),
    "hidden": lambda: open(".hidden", "w").close() or 1.0, "no secret": no_secret,
    "temporary": lambda: tempfile.mkstemp() and tempfile.mkdtemp() and 1.0,
    "home": lambda: pathlib.Path("~/x").expanduser().write_text("x") and 1.0,
    "socket file": lambda: socket.socket(socket.AF_UNIX).bind("s") or 1.0, "dash": lambda: open("-rf",
    "w") and 1.0,
    # What only namespaces prevent.
    "outside": lambda: outside(METADATA["outside"]), "outside tmp": lambda: outside("/tmp"),
    "outside shm": lambda: outside("/dev/shm"), "outside etc": lambda: outside("/etc"),
    "outside home": lambda: outside("/root"), "connect": lambda: connect(METADATA["port"]),
    "serve": serve_network, "read-only off": read_only_off, "raw socket": lambda: socket.socket(17, 3, 3),
}
METADATA = {}

def score(response, reference, metadata):
    METADATA.update(metadata)
    return 1.0 if response == "good" else ACTS[response]()
'''

ACTS: dict = {}
exec(HOSTILE_FILE, ACTS)
ACTS = ACTS["ACTS"]

# As a user without namespaces these would do harm, to the machine or to other items.
NEEDS_NAMESPACES = {
    "outside", "outside tmp", "outside shm", "outside etc", "outside home", "connect", "read-only off",
    "kill all", "no environment", "forks",
}  # fmt: skip
# Results and texts are the same with and without namespaces; from this act on they make a difference.
WITHOUT_NAMESPACES = [
    act for act in list(ACTS)[list(ACTS).index("fork bomb") :] if act not in NEEDS_NAMESPACES
]
# They do their harm and return 1.0.
MATCH = {
    "answer text", "answer surrogate", "answer escapes", "answer huge", "answer huge astral",
    "answer control",
    "answer number", "answer bytes", "child", "detached", "detached, empty environment", "child of a shell",
    "thread that spins", "no stdout", "trace", "change folder", "pickle",
    "no environment", "hidden", "no secret", "temporary", "home", "socket file", "read-only off", "dash",
}  # fmt: skip
TIMEOUT = {
    "float spins", "verdict spins", "reward spins", "answer spins", "spin", "sleep", "deaf", "pause", "lock",
    "alarm", "pipe", "own session", "no death signal", "fifo",
}  # fmt: skip
# What comes of them depends on the kernel and on what is left of the limits.
ANY = {
    "warnings",
    "threads",
    "forks",
    "thread that exits",
    "later alarm",
    "system print",
    "forged error",
    "serve",
}
RESPONSES = [  # of a model, for the built-in verifiers
    "", "\0", "\ud800", "\\boxed{" * 5000, "\\boxed{\ud800\udfff}", "#### \x1b[2J", "#### " + "9" * 100_000,
    "\\boxed{" + "9" * 100_000 + "}", "\\boxed{9^{9^{9^{9}}}}", "\\boxed{(10^7)!}",
    "\\boxed{" + "(" * 3000 + "}",
    "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 301, "\\boxed{\\sqrt{-1}^{i^{i^i}}}", "\\boxed{1/0}",
    "\\boxed{\\infty}", "\\boxed{nan}", "#### nan", "#### inf", "#### -inf", "#### 1e999", "#### 1_0",
    "#### \u0661",
    "\\boxed{\\text{\u202ereversed}}", "\\boxed{" + "x+" * 20_000 + "1}", "{" * 100_000, "}" * 100_000,
    "\\boxed{\\int_0^\\infty e^{-x^2}dx}", "\\boxed{x_{x_{x_{x}}}}", "\\boxed{__import__('os')._exit(0)}",
    "#### __import__('os')._exit(0)", "\\boxed{\\input{/etc/passwd}}", "\\boxed{\\prod_{i=1}^{10^9} i}",
    "$" * 50_000, "\\boxed{1}" * 5000, "1" * 1_000_000, "\\boxed{0.{1}}", "\r\n\u2028" * 1000,
    "\\boxed{%s%n}",
    "\\boxed{\\sum_{k=0}^{10^8} k^{k}}", "\\boxed{10^{10^{10}}}", "#### " + "[" * 50_000, "\\boxed{\\{" * 999,
]  # fmt: skip


def allowed(act: str) -> set[str]:
    if act in ANY:
        return {"match", "mismatch", "no_answer", "timeout", "error"}
    if act in MATCH:
        return {"match"}
    return {"timeout"} if act in TIMEOUT else {"timeout", "error"}
