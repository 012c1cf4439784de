//! Supervises model-written programs: deadlines, output caps, kills, verdicts.
//!
//! A worker is a warm interpreter, a process of its own, that forks one process for each program
//! (two where tests run apart from the candidate) and reaps it. This side starts the workers, one
//! a thread, and keeps them for a while; hands each program over as descriptors that the worker
//! itself never reads, watches the clock, the CPU time and the output, kills through pidfds, and
//! names the outcome. What runs inside the worker is the Python package's
//! (`hornbook.evaluate._worker`).
//!
//! A request is one byte with descriptors beside it. Answers are a big-endian length and JSON.

use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;

use system::{Process, carrier, drain, receive_with_fds, wait_for};

mod system;

/// Bytes of a program's output that are kept.
pub const OUTPUT_KEPT: usize = 64 * 1024;
/// Bytes of output after which a program is killed.
pub const OUTPUT_KILLS: usize = 4 * 1024 * 1024;
const START: Duration = Duration::from_secs(60);
/// How long a worker may take for what it does itself: fork, reap, answer.
const SLACK: Duration = Duration::from_secs(30);
/// How long a process may live on after the verdict is known.
const GRACE: Duration = Duration::from_secs(1);
const CANDIDATE_GRACE: Duration = Duration::from_millis(250);
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const FRAME_LIMIT: usize = 1 << 20;
/// Bytes of the secret that a verdict begins with.
const TOKEN: usize = 32;

/// One program: what the worker's children read. The worker never does.
#[derive(Debug, Clone)]
pub struct Job {
    /// The candidate's text, as the child expects it.
    pub source: Vec<u8>,
    /// Tests for a process of their own; none if the text tests itself.
    pub tests: Option<Vec<u8>>,
    /// Whether that process may have run tests before and may run others after: they are trusted.
    pub lasting: bool,
}

/// What one program may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// CPU time of each process, its threads together.
    pub cpu: Duration,
    /// Real time for everything.
    pub wall: Duration,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Reached its end.
    Passed,
    /// An assertion failed.
    Wrong,
    /// Any other exception.
    Exception,
    /// Used up its CPU time.
    Cpu,
    /// Used up its real time.
    Wall,
    /// Used up its memory.
    Memory,
    /// Printed too much.
    Output,
    /// Killed for a forbidden system call.
    Syscall,
    /// Ended without a verdict, or broke the protocol.
    Crash,
    /// Not the program's doing.
    Harness,
    /// The tests need something that cannot cross between processes.
    Unsplit,
}

impl Status {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Wrong => "wrong",
            Self::Exception => "exception",
            Self::Cpu => "cpu",
            Self::Wall => "wall",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Syscall => "syscall",
            Self::Crash => "crash",
            Self::Harness => "harness",
            Self::Unsplit => "unsplit",
        }
    }
}

/// What came of one program.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// Whether the verdict was out of the candidate's reach.
    pub tamper_proof: bool,
    /// User and system time of its processes.
    pub cpu: Duration,
    /// From handing it over to its end.
    pub wall: Duration,
    /// Largest resident memory of its processes, in KiB.
    pub rss_kb: u64,
    /// The signal that ended the candidate.
    pub signal: Option<i32>,
    /// The first bytes of what it printed, and how it died.
    pub output: Vec<u8>,
}

/// Why there are no outcomes.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A worker could not start: what it, or the system, said.
    #[error("the sandbox's worker cannot start: {0}")]
    Start(String),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

enum Lost {
    Died,
    Stopped,
}

impl From<io::Error> for Lost {
    fn from(_: io::Error) -> Self {
        Self::Died
    }
}

/// The command that starts a worker: an executable and its arguments.
pub type Argv = [String];

/// How long a worker without work is kept: starting one takes as long as many programs do.
const KEPT: Duration = Duration::from_secs(10);

/// Workers that outlive a run, so that the next one finds them warm.
///
/// Each is owned by a thread, because a worker ends with the thread that started it. Dropping the
/// pool ends them; so does the end of the process, in whatever way, by the kernel's hand. A process
/// that was forked has none of these threads: it must make a pool of its own.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Arc<Mutex<Vec<Lane>>>,
    made: AtomicUsize,
}

/// A thread with a worker, or about to start one.
#[derive(Debug)]
struct Lane {
    number: usize,
    argv: Vec<String>,
    give: mpsc::Sender<Task>,
}

#[derive(Debug)]
struct Task {
    work: Arc<Work>,
    sender: mpsc::Sender<Sent>,
    /// The lane that does it, to be put back.
    lane: Lane,
}

#[derive(Debug)]
struct Work {
    jobs: Vec<Job>,
    limits: Limits,
    next: AtomicUsize,
    /// Closed when everything is to stop.
    stop: PipeReader,
}

type Sent = Result<(usize, Outcome), Failure>;

impl Pool {
    /// Runs every job, some at a time, each once.
    ///
    /// `tick` is called about 20 times a second, and after each outcome, with the number done; it
    /// returns whether to go on. A worker that dies is replaced, and its job tried once more.
    pub fn run(
        &self,
        jobs: Vec<Job>,
        argv: &Argv,
        limits: Limits,
        workers: usize,
        mut tick: impl FnMut(usize) -> bool,
    ) -> Result<Vec<Outcome>, Failure> {
        let failed = |error: io::Error| Failure::Start(error.to_string());
        let (stop, stopper) = io::pipe().map_err(failed)?;
        let (sender, results) = mpsc::channel();
        let count = jobs.len();
        let work = Arc::new(Work { jobs, limits, next: AtomicUsize::new(0), stop });
        for _ in 0..workers.clamp(1, count.max(1)) {
            let lane = self.lane(argv).map_err(failed)?;
            let give = lane.give.clone();
            let task = Task { work: work.clone(), sender: sender.clone(), lane };
            give.send(task).map_err(|_| Failure::Start("the sandbox's threads ended".into()))?;
        }
        drop(sender);
        let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
        let mut done = 0;
        let mut failure = None;
        while done < count && failure.is_none() {
            match results.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok((index, outcome))) => {
                    outcomes[index] = Some(outcome);
                    done += 1;
                }
                Ok(Err(found)) => failure = Some(found),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    failure = Some(Failure::Start("the sandbox's threads ended".into()));
                }
            }
            if failure.is_none() && !tick(done) {
                failure = Some(Failure::Stopped);
            }
        }
        drop(stopper); // every thread that still waits sees it
        while results.recv().is_ok() {} // and has let go of its program when this ends
        match failure {
            Some(failure) => Err(failure),
            None => Ok(outcomes.into_iter().flatten().collect()),
        }
    }

    /// A thread for workers of this kind: one that waits, or a new one.
    fn lane(&self, argv: &Argv) -> io::Result<Lane> {
        let mut idle = lock(&self.idle);
        if let Some(at) = idle.iter().position(|lane| lane.argv == argv) {
            return Ok(idle.swap_remove(at));
        }
        let (give, tasks) = mpsc::channel();
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let pool = Arc::downgrade(&self.idle);
        std::thread::Builder::new()
            .name("hornbook-sandbox".into())
            .spawn(move || attend(number, &tasks, &pool))?;
        Ok(Lane { number, argv: argv.to_vec(), give })
    }
}

/// Cores that programs may use. Asking takes files of the kernel's: once is enough.
static CORES: LazyLock<u32> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32));

/// Nothing that holds the lock can panic half-way through a change.
fn lock(idle: &Mutex<Vec<Lane>>) -> MutexGuard<'_, Vec<Lane>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread: does what it is given, and waits for more.
fn attend(number: usize, tasks: &mpsc::Receiver<Task>, pool: &Weak<Mutex<Vec<Lane>>>) {
    let mut worker = None;
    loop {
        match tasks.recv_timeout(KEPT) {
            Ok(Task { work, sender, lane }) => {
                serve(&work, &lane.argv, &mut worker, &sender);
                drop(work);
                let Some(pool) = pool.upgrade() else { return };
                lock(&pool).push(lane);
                // Only now is the caller told, so that its next run finds this lane.
                drop(sender);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let Some(pool) = pool.upgrade() else { return };
                let mut idle = lock(&pool);
                // If it is not there it has been taken, and a task is on its way.
                if let Some(at) = idle.iter().position(|lane| lane.number == number) {
                    idle.swap_remove(at);
                    return;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Does what is left of the work, with one worker at a time.
fn serve(work: &Work, argv: &Argv, worker: &mut Option<Worker>, sender: &mpsc::Sender<Sent>) {
    while let Some((index, job)) = {
        let index = work.next.fetch_add(1, Ordering::Relaxed);
        work.jobs.get(index).map(|job| (index, job))
    } {
        let mut said = String::new();
        let mut outcome = None;
        for attempt in 0..2 {
            let mut current =
                match worker.take().map_or_else(|| Worker::start(argv, &work.stop), Ok) {
                    Ok(current) => current,
                    Err(Failure::Start(_)) if attempt == 0 => continue, // it may have been killed
                    Err(failure) => {
                        let _ = sender.send(Err(failure));
                        return;
                    }
                };
            match current.run(job, work.limits, &work.stop) {
                Ok(found) => {
                    outcome = Some(found);
                    *worker = (!current.spent).then_some(current);
                    break;
                }
                Err(Lost::Stopped) => return,
                Err(Lost::Died) => said = current.last_words(),
            }
        }
        let outcome = outcome.unwrap_or_else(|| Outcome {
            status: Status::Harness,
            tamper_proof: false,
            cpu: Duration::ZERO,
            wall: Duration::ZERO,
            rss_kb: 0,
            signal: None,
            output: format!("the sandbox's worker ended twice on this program. {said}").into(),
        });
        if sender.send(Ok((index, outcome))).is_err() {
            return;
        }
    }
}

/// Starts a worker and returns what it says of itself, as JSON.
pub fn describe(argv: &Argv) -> Result<Vec<u8>, Failure> {
    let (stop, _stopper) = io::pipe().map_err(|error| Failure::Start(error.to_string()))?;
    Worker::start(argv, &stop).map(|mut worker| std::mem::take(&mut worker.hello))
}

/// A worker process and the socket to it.
struct Worker {
    process: Child,
    socket: UnixStream,
    hello: Vec<u8>,
    /// It may count on a process that is dead.
    spent: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The kernel ends everything below it: see `_worker`.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Deserialize)]
struct Hello {
    error: Option<String>,
}

/// What the worker says once a program's processes run: `_STARTED` there.
struct Started {
    token: Vec<u8>,
    pids: Vec<i32>,
    /// CPU seconds that each had used before.
    before: Vec<f64>,
}

impl Started {
    fn parse(body: &[u8]) -> Option<Self> {
        let (token, rest) = body.split_at_checked(TOKEN)?;
        let (processes, []) = rest.as_chunks::<12>() else { return None };
        Some(Self {
            token: token.to_vec(),
            pids: processes.iter().map(|p| i32::from_ne_bytes(part(p, 0))).collect(),
            before: processes.iter().map(|p| f64::from_ne_bytes(part(p, 4))).collect(),
        })
    }
}

/// How one process ended: `_ENDED` in the worker.
#[derive(Clone, Copy)]
struct Ended {
    code: i32,
    cpu_s: f64,
    rss_kb: u64,
    /// Whether it lives on, for the next program's tests.
    lives: bool,
}

impl Ended {
    fn parse(body: &[u8]) -> Option<Vec<Self>> {
        let (processes, []) = body.as_chunks::<21>() else { return None };
        let read = |process: &[u8; 21]| Self {
            code: i32::from_ne_bytes(part(process, 0)),
            cpu_s: f64::from_ne_bytes(part(process, 4)),
            rss_kb: u64::from_ne_bytes(part(process, 12)),
            lives: process[20] != 0,
        };
        Some(processes.iter().map(read).collect())
    }
}

/// `N` bytes of a fixed-size message.
fn part<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    message[at..at + N].try_into().expect("within the message")
}

impl Worker {
    fn start(argv: &Argv, stop: &PipeReader) -> Result<Self, Failure> {
        let failed = |what: String| Failure::Start(what);
        let (program, arguments) =
            argv.split_first().ok_or_else(|| failed("no command for a worker".into()))?;
        let (socket, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
        let process = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PYTHONHASHSEED", "0") // the order of a set must not decide a verdict
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{program}: {error}")))?;
        let mut worker = Self { process, socket, hello: Vec::new(), spent: false };
        match worker.receive(Instant::now() + START, stop) {
            Ok((hello, _)) => worker.hello = hello,
            Err(Lost::Stopped) => return Err(Failure::Stopped),
            Err(Lost::Died) => {
                let words = worker.last_words();
                let none = "it ended without a word".to_owned();
                return Err(failed(if words.is_empty() { none } else { words }));
            }
        }
        match serde_json::from_slice::<Hello>(&worker.hello) {
            Ok(Hello { error: None }) => Ok(worker),
            Ok(Hello { error: Some(error) }) => Err(failed(error)),
            Err(error) => Err(failed(format!("the worker's first words: {error}"))),
        }
    }

    /// Ends the worker; the end of what it wrote on its standard error.
    fn last_words(&mut self) -> String {
        let _ = self.process.kill();
        let mut text = Vec::new();
        if let Some(stderr) = self.process.stderr.take() {
            let _ = rustix::io::ioctl_fionbio(&stderr, true);
            let _ = stderr.take(1 << 16).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let start = text.char_indices().rev().nth(500).map_or(0, |(at, _)| at);
        text[start..].trim().to_owned()
    }

    /// Waits until the worker or the stop says something, or the deadline is over.
    fn wait(&self, deadline: Instant, stop: &PipeReader) -> Result<(), Lost> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if wait_for(&mut fds, deadline.saturating_duration_since(Instant::now()))? == 0 {
            return Err(Lost::Died);
        }
        if fds[1].revents().is_empty() { Ok(()) } else { Err(Lost::Stopped) }
    }

    /// One frame and the descriptors beside it.
    fn receive(
        &mut self,
        deadline: Instant,
        stop: &PipeReader,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Lost> {
        let mut head = [0; 4];
        self.wait(deadline, stop)?;
        let (got, fds) = receive_with_fds(&self.socket, &mut head)?;
        let mut body = Vec::new();
        self.fill(&mut head[got..], deadline, stop)?;
        let size = u32::from_be_bytes(head) as usize;
        if size > FRAME_LIMIT {
            return Err(Lost::Died);
        }
        body.resize(size, 0);
        self.fill(&mut body, deadline, stop)?;
        Ok((body, fds))
    }

    fn fill(&mut self, mut rest: &mut [u8], end: Instant, stop: &PipeReader) -> Result<(), Lost> {
        while !rest.is_empty() {
            self.wait(end, stop)?;
            let got = self.socket.read(rest)?;
            if got == 0 {
                return Err(Lost::Died);
            }
            rest = &mut rest[got..];
        }
        Ok(())
    }

    /// Has one program run, and watches it to its end.
    fn run(&mut self, job: &Job, limits: Limits, stop: &PipeReader) -> Result<Outcome, Lost> {
        let start = Instant::now();
        let (out, out_theirs) = io::pipe()?;
        let (report, report_theirs) = io::pipe()?;
        let mut fds: Vec<OwnedFd> = vec![out_theirs.into(), report_theirs.into()];
        for text in [Some(&job.source), job.tests.as_ref()].into_iter().flatten() {
            fds.push(carrier(text)?);
        }
        self.send(if job.lasting { b'T' } else { b'!' }, &fds)?;
        drop(fds); // ours: the ends of the pipes must show
        let (body, pidfds) = self.receive(start + SLACK, stop)?;
        let started = Started::parse(&body).ok_or(Lost::Died)?;
        for pipe in [out.as_fd(), report.as_fd()] {
            rustix::io::ioctl_fionbio(pipe, true).map_err(io::Error::from)?;
        }
        let mut watch = Watch {
            processes: Process::all(pidfds, &started.pids, &started.before),
            lasting: job.lasting,
            out,
            report,
            kept: Vec::new(),
            verdict: Vec::new(),
            total: 0,
            killed: None,
            killed_all: false,
            killed_at: start,
        };
        let ended = self.watch(&mut watch, start, limits, stop)?;
        self.spent = watch.killed_all && ended.iter().any(|end| end.lives);
        watch.drain();
        Ok(watch.outcome(&started.token, &ended, limits, start.elapsed()))
    }

    /// Asks for a program: where it prints and reports, its text, and its tests if they are apart.
    fn send(&mut self, kind: u8, fds: &[OwnedFd]) -> Result<(), Lost> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&borrowed)), "room for 4");
        sendmsg(&self.socket, &[io::IoSlice::new(&[kind])], &mut beside, SendFlags::empty())
            .map_err(io::Error::from)?;
        Ok(())
    }

    fn watch(
        &mut self,
        watch: &mut Watch,
        start: Instant,
        limits: Limits,
        stop: &PipeReader,
    ) -> Result<Vec<Ended>, Lost> {
        let cores = *CORES;
        let mut deadline = start + limits.wall;
        let mut decided = false;
        let (mut out_open, mut report_open) = (true, true);
        loop {
            let now = Instant::now();
            let mut pause = if watch.killed_all { SLACK } else { GRACE };
            if watch.killed.is_none() {
                // No sooner than all cores together could have used it up.
                let clocks: Vec<Duration> = if start.elapsed() * cores < limits.cpu {
                    Vec::new()
                } else {
                    watch.processes.iter_mut().map(Process::cpu).collect()
                };
                let used = clocks.iter().copied().max().unwrap_or_default();
                if watch.total > OUTPUT_KILLS {
                    watch.killed = Some(Status::Output);
                } else if used > limits.cpu {
                    watch.killed = Some(Status::Cpu);
                } else if now >= deadline {
                    watch.killed = Some(Status::Wall);
                }
                if watch.killed.is_some() {
                    // Tests whose candidate is gone come to an end by themselves.
                    let candidate = decided
                        || watch.killed == Some(Status::Output)
                        || clocks.first().is_some_and(|&used| used > limits.cpu);
                    watch.kill(watch.lasting && candidate);
                } else {
                    let left = (limits.cpu.saturating_sub(used) / cores).max(SHORTEST_WAIT);
                    pause = left.min(deadline.saturating_duration_since(now));
                }
            }
            let socket = self.socket.as_fd();
            let mut fds = vec![
                PollFd::from_borrowed_fd(socket, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            // A pipe at its end is always readable: it is left out then.
            if out_open {
                fds.push(PollFd::new(&watch.out, PollFlags::IN));
            }
            if report_open {
                fds.push(PollFd::new(&watch.report, PollFlags::IN));
            }
            wait_for(&mut fds, pause)?;
            let (answered, stopped) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if stopped {
                watch.kill(false);
                return Err(Lost::Stopped);
            }
            if watch.killed.is_some() && !answered {
                let since = watch.killed_at.elapsed();
                if watch.killed_all && since >= SLACK {
                    return Err(Lost::Died); // killed, and yet the worker does not answer
                } else if !watch.killed_all && since >= GRACE {
                    watch.kill(false);
                }
            }
            (out_open, report_open) = watch.drain();
            if watch.verdict.len() >= TOKEN + 2 && !decided {
                // Where tests run apart the candidate may go now; it flushes and does.
                let grace = if watch.processes.len() > 1 { CANDIDATE_GRACE } else { GRACE };
                decided = true;
                deadline = deadline.min(Instant::now() + grace);
            }
            if answered {
                let (body, _) = self.receive(Instant::now() + SLACK, stop)?;
                return Ended::parse(&body).ok_or(Lost::Died);
            }
        }
    }
}

/// One program while it runs.
struct Watch {
    /// The candidate first; where tests run apart, they are second.
    processes: Vec<Process>,
    /// Whether the tests' process is to run other programs' tests too.
    lasting: bool,
    out: PipeReader,
    report: PipeReader,
    kept: Vec<u8>,
    verdict: Vec<u8>,
    total: usize,
    killed: Option<Status>,
    killed_all: bool,
    killed_at: Instant,
}

impl Watch {
    /// Ends every process, or only the candidate's.
    fn kill(&mut self, candidate_only: bool) {
        let count = if candidate_only { 1 } else { self.processes.len() };
        self.processes.iter().take(count).for_each(Process::kill);
        self.killed_all = !candidate_only;
        self.killed_at = Instant::now();
    }

    /// Takes what is in the pipes; whether each is still open.
    fn drain(&mut self) -> (bool, bool) {
        let Self { out, report, kept, verdict, total, .. } = self;
        let out = drain(out, total, kept, OUTPUT_KEPT);
        (out, drain(report, total, verdict, TOKEN + 3))
    }

    fn outcome(mut self, token: &[u8], ended: &[Ended], limits: Limits, wall: Duration) -> Outcome {
        let said = self.verdict.strip_prefix(token);
        let (kind, proof) = match said {
            Some([kind, proof]) => (*kind, *proof == b'1'),
            _ => (0, false),
        };
        let mut status = match kind {
            b'P' => Some(Status::Passed),
            b'W' => Some(Status::Wrong),
            b'E' => Some(Status::Exception),
            b'M' => Some(Status::Memory),
            b'H' => Some(Status::Harness),
            b'F' => Some(Status::Unsplit),
            b'X' => Some(Status::Crash),
            _ => None,
        };
        let candidate = ended.first().map_or(0, |end| end.code);
        let overrun = ended.iter().any(|end| end.cpu_s > limits.cpu.as_secs_f64());
        if self.total > OUTPUT_KILLS {
            status = Some(Status::Output);
        } else if matches!(status, None | Some(Status::Passed))
            && (self.killed == Some(Status::Cpu) || overrun)
        {
            status = Some(Status::Cpu);
        }
        let status = status.or(self.killed).unwrap_or_else(|| {
            // `G`: the tests found the candidate gone. Else whoever was to judge ended first.
            let judge = ended.last().map_or(0, |end| end.code);
            let code = if kind == b'G' { candidate } else { judge };
            self.kept.truncate(OUTPUT_KEPT - 200);
            self.kept.extend_from_slice(how(code).as_bytes());
            death(code)
        });
        Outcome {
            status,
            tamper_proof: self.processes.len() > 1 && (kind == 0 || proof),
            cpu: ended.iter().map(|end| Duration::from_secs_f64(end.cpu_s)).sum(),
            wall,
            rss_kb: ended.iter().map(|end| end.rss_kb).max().unwrap_or(0),
            signal: (candidate < 0).then_some(-candidate),
            output: self.kept,
        }
    }
}

/// Exit codes are as in Python's `subprocess`: negative for a signal.
fn death(code: i32) -> Status {
    match signal(code) {
        Some(nix::sys::signal::Signal::SIGSYS) => Status::Syscall,
        Some(nix::sys::signal::Signal::SIGXCPU) => Status::Cpu,
        _ => Status::Crash,
    }
}

fn signal(code: i32) -> Option<nix::sys::signal::Signal> {
    nix::sys::signal::Signal::try_from(-code).ok()
}

fn how(code: i32) -> String {
    match signal(code) {
        Some(signal) => format!("\nended by signal {} ({})\n", -code, signal.as_str()),
        None => format!("\nended without a verdict (exit code {code})\n"),
    }
}
