//! The files to which the standard output and the standard error of serving processes are appended.
//!
//! A serving process writes to a pipe, and a [log writer](LogWriter) copies what is in the pipe into
//! the file. So the file can be opened again while the processes run, and the supervisor never waits
//! for the disk.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Settings;
use super::logger;
use crate::clock::Deadline;
use crate::log;
use crate::sys::supervision::{LogWriter, Source, open_log_file};
use crate::sys::{self, Descriptor, Identity, Interest, LogReport};
use crate::wire::{OutputRecord, WirePath};

/// All files.
#[derive(Debug)]
pub(super) struct OutputFiles {
    files: Vec<OutputFile>,
    /// The control clients that wait until the files are opened again.
    clients: Vec<u64>,
    /// When these clients get an answer in any case.
    answer_by: Deadline,
    /// Why files could not be opened again, for these clients.
    errors: Vec<String>,
}

/// A file, the pipe that leads to it, and the process that copies.
#[derive(Debug)]
struct OutputFile {
    path: PathBuf,
    streams: Streams,
    /// The pipe. The supervisor holds the reading end for the next log writer, if this one dies.
    reader: Descriptor,
    writer: Descriptor,
    /// `None` if the last one has died and the next one is not started yet.
    log_writer: Option<LogWriter>,
    /// When the log writer was started, or taken over.
    started_at: Instant,
    /// When to start a log writer.
    start_at: Deadline,
    /// How many requests to open the file again have no report yet.
    pending: usize,
}

/// Which output of new processes goes to a file. Neither, if only earlier processes have the pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Streams {
    stdout: bool,
    stderr: bool,
}

/// The result of a request to open the files again, for the clients that wait for it.
pub(super) struct ReopenResult {
    pub(super) clients: Vec<u64>,
    pub(super) error: Option<String>,
}

/// A log writer that has not run for so long is replaced only after this time.
const MIN_AGE: Duration = Duration::from_secs(1);

/// How long a client waits until the files are opened again: less than the command `handover` waits
/// for an answer.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(4);

/// How long to wait in the end until all output is written.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The files that the settings name. Both streams may have one.
fn wanted(settings: &Settings) -> io::Result<Vec<(PathBuf, Streams)>> {
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let (stdout, stderr) = (absolute(&settings.stdout)?, absolute(&settings.stderr)?);
    let is_one = stdout.is_some() && stdout == stderr;
    let out = |path| {
        let streams = Streams {
            stdout: true,
            stderr: is_one,
        };
        (path, streams)
    };
    let err = |path| {
        let streams = Streams {
            stdout: false,
            stderr: true,
        };
        (path, streams)
    };
    let stderr = stderr.filter(|_| !is_one).map(err);
    Ok(stdout.map(out).into_iter().chain(stderr).collect())
}

/// Has the supervisor's own log go to the file of standard error, if the settings say so.
pub(super) fn log_to(settings: &Settings, files: &OutputFiles) -> io::Result<()> {
    if let (true, (_, Some(pipe))) = (settings.log_to_file, files.of_new_process()) {
        logger::write_to(sys::descriptor::into_file(pipe.try_clone()?)?);
    }
    Ok(())
}

impl Default for OutputFiles {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            clients: Vec::new(),
            answer_by: Deadline::NEVER,
            errors: Vec::new(),
        }
    }
}

impl OutputFiles {
    /// Opens the files that the settings name.
    ///
    /// # Errors
    ///
    /// A file cannot be opened, see [`open_log_file`]; no memory, no descriptors.
    pub(super) fn open(settings: &Settings) -> io::Result<Self> {
        let mut all = Self::default();
        for (path, streams) in wanted(settings)? {
            let file = OutputFile::open(path, streams, settings.identity.as_ref())?;
            all.files.push(file);
        }
        Ok(all)
    }

    /// Takes over the files of the program before. What the settings of this program name otherwise
    /// is changed; errors are only logged.
    pub(super) fn resume(records: Vec<OutputRecord>, settings: &Settings) -> io::Result<Self> {
        let mut all = Self::default();
        for record in records {
            all.files.push(OutputFile::resume(record)?);
        }
        let wanted = wanted(settings)?;
        for file in &mut all.files {
            let streams = file.streams;
            match wanted.iter().find(|(_, wanted)| *wanted == streams) {
                Some((path, _)) if *path == file.path => {}
                Some((path, _)) => {
                    file.path.clone_from(path);
                    file.reopen();
                }
                // The processes that run go on writing to the pipe.
                None => file.streams = Streams::default(),
            }
        }
        for (path, streams) in wanted {
            if !all.files.iter().any(|file| file.streams == streams) {
                match OutputFile::open(path, streams, settings.identity.as_ref()) {
                    Ok(file) => all.files.push(file),
                    Err(error) => log::error!("{error}"),
                }
            }
        }
        Ok(all)
    }

    /// The pipes for the standard output and the standard error of a new process.
    pub(super) fn of_new_process(&self) -> (Option<&Descriptor>, Option<&Descriptor>) {
        let find = |is_wanted: fn(Streams) -> bool| {
            let mut files = self.files.iter();
            files.find(|file| is_wanted(file.streams))
        };
        let stdout = find(|streams| streams.stdout).map(|file| &file.writer);
        let stderr = find(|streams| streams.stderr).map(|file| &file.writer);
        (stdout, stderr)
    }

    /// The process ids of the log writers.
    pub(super) fn log_writer_pids(&self) -> impl Iterator<Item = u32> {
        self.log_writers().map(LogWriter::pid)
    }

    fn log_writers(&self) -> impl Iterator<Item = &LogWriter> {
        self.files
            .iter()
            .filter_map(|file| file.log_writer.as_ref())
    }

    /// What to wait for.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source<'_>, Interest)> {
        self.log_writers().map(|own| (own.source(), Interest::Read))
    }

    pub(super) fn deadline(&self) -> Deadline {
        let deadlines = self.files.iter().map(|file| file.start_at);
        deadlines.fold(self.answer_by, Deadline::earlier)
    }

    /// Has the files opened again. The client, if there is one, gets the result.
    pub(super) fn reopen(&mut self, client: Option<u64>) {
        if self.clients.is_empty() && client.is_some() {
            self.answer_by = Deadline::after(Instant::now(), REOPEN_TIMEOUT);
        }
        self.clients.extend(client);
        for file in &mut self.files {
            self.errors.extend(file.reopen());
        }
    }

    /// Reads the reports of the log writers, and starts those that are missing. Returns the result of
    /// requests to open the files again, once it is known.
    pub(super) fn handle_reports(&mut self, now: Instant) -> Option<ReopenResult> {
        for file in &mut self.files {
            file.start_if_due(now);
            while let Some(report) = file.log_writer.as_ref().and_then(LogWriter::receive) {
                self.errors.extend(file.handle_report(report));
            }
        }
        let late = self.files.iter().filter(|file| file.pending > 0);
        let late = late.map(|file| format!("{} is not open yet", file.path.display()));
        let late: Vec<_> = late.collect();
        if !late.is_empty() && !self.answer_by.has_passed(now) {
            return None;
        }
        self.answer_by = Deadline::NEVER;
        let clients = std::mem::take(&mut self.clients);
        let mut errors = std::mem::take(&mut self.errors);
        errors.extend(late);
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        if clients.is_empty() {
            return None;
        }
        Some(ReopenResult { clients, error })
    }

    /// A process has exited. If it was a log writer, another one is started: at once, or later if
    /// this one did not last.
    pub(super) fn handle_exit(&mut self, pid: u32, how: &str, now: Instant) {
        let is_its = |file: &&mut OutputFile| {
            let own = file.log_writer.as_ref();
            own.is_some_and(|own| own.pid() == pid)
        };
        if let Some(file) = self.files.iter_mut().find(is_its) {
            let path = file.path.display();
            log::warn!("the log writer of {path}, process {pid}, exited ({how}): starting another");
            file.log_writer = None;
            file.start_at = Deadline::after(file.started_at, MIN_AGE);
            file.start_if_due(now);
        }
    }

    /// Waits until everything is written that processes have written so far, at most for a second.
    pub(super) fn drain(&mut self) {
        let deadline = Deadline::after(Instant::now(), DRAIN_TIMEOUT);
        let asked = |file: &OutputFile| file.log_writer.as_ref().map(LogWriter::drain);
        let asked: Vec<_> = self.files.iter().map(asked).collect();
        for (file, asked) in self.files.iter_mut().zip(asked) {
            let waited = asked
                .unwrap_or(Ok(()))
                .and_then(|()| file.wait_drained(deadline));
            if let Err(error) = waited {
                log::debug!("cannot wait for the log writer: {error}");
            }
        }
    }

    /// What an upgrade passes on. `keep` keeps a copy of a descriptor open, and returns its number.
    pub(super) fn records(
        &self,
        mut keep: impl FnMut(Descriptor) -> i32,
    ) -> io::Result<Vec<OutputRecord>> {
        let record = |file: &OutputFile| -> io::Result<_> {
            let mut log_writer = None;
            if let Some(own) = &file.log_writer {
                let socket = keep(sys::descriptor::duplicate(own.socket())?);
                log_writer = Some((socket, own.pid()));
            }
            Ok(OutputRecord {
                path: WirePath::new(&file.path).ok_or(io::ErrorKind::InvalidInput)?,
                stdout: file.streams.stdout,
                stderr: file.streams.stderr,
                reader: keep(file.reader.try_clone()?),
                writer: keep(file.writer.try_clone()?),
                log_writer,
            })
        };
        self.files.iter().map(record).collect()
    }
}

impl OutputFile {
    fn open(path: PathBuf, streams: Streams, identity: Option<&Identity>) -> io::Result<Self> {
        let failed = |error: io::Error| {
            let text = format!("cannot append to {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        };
        let file = open_log_file(&path).map_err(failed)?;
        let (reader, writer) = sys::descriptor::create_pipe()?;
        let credentials = identity.and_then(|identity| identity.credentials.as_ref());
        sys::supervision::prepare_log_pipe(&writer, credentials)?;
        let log_writer = LogWriter::start(&reader, Some(&file))?;
        Ok(Self {
            path,
            streams,
            reader,
            writer,
            log_writer: Some(log_writer),
            started_at: Instant::now(),
            start_at: Deadline::NEVER,
            pending: 0,
        })
    }

    fn resume(record: OutputRecord) -> io::Result<Self> {
        let log_writer = record.log_writer;
        let log_writer = log_writer.map(|(socket, pid)| LogWriter::resume(pid, socket));
        let log_writer = log_writer.transpose()?;
        let now = Instant::now();
        Ok(Self {
            path: sys::file::os_string(record.path.as_bytes()).into(),
            streams: Streams {
                stdout: record.stdout,
                stderr: record.stderr,
            },
            reader: sys::descriptor::adopt(record.reader)?,
            writer: sys::descriptor::adopt(record.writer)?,
            start_at: Deadline::at(log_writer.is_none().then_some(now)),
            log_writer,
            started_at: now,
            pending: 0,
        })
    }

    /// Has the file opened again. Returns an error if there will be no report.
    fn reopen(&mut self) -> Option<String> {
        // A log writer opens the file when it is started.
        let own = self.log_writer.as_ref()?;
        match own.reopen(&self.path) {
            Ok(()) => {
                self.pending += 1;
                None
            }
            Err(error) => {
                let path = self.path.display();
                let text = format!("the log writer of {path} does not take requests: {error}");
                log::error!("{text}");
                Some(text)
            }
        }
    }

    /// Returns the error of a request to open the file again.
    fn handle_report(&mut self, report: LogReport) -> Option<String> {
        let path = self.path.display();
        match report {
            LogReport::Reopened(result) => {
                self.pending = self.pending.saturating_sub(1);
                let Err(error) = result else {
                    log::info!("opened {path}");
                    return None;
                };
                let text = format!("cannot open {path} again: {error}");
                log::error!("{text}");
                return Some(text);
            }
            LogReport::Lost { lines, error } => {
                log::error!("{lines} lines of output were lost: cannot write to {path}: {error}");
            }
            LogReport::Drained => {}
        }
        None
    }

    fn start_if_due(&mut self, now: Instant) {
        if self.log_writer.is_some() || !self.start_at.has_passed(now) {
            return;
        }
        self.start_at = Deadline::after(now, MIN_AGE);
        self.started_at = now;
        self.pending = 0;
        match LogWriter::start(&self.reader, None) {
            Ok(log_writer) => {
                self.log_writer = Some(log_writer);
                self.start_at = Deadline::NEVER;
                self.reopen();
            }
            Err(error) => log::error!("cannot start a log writer: {error}"),
        }
    }

    /// Handles the reports up to the last one.
    fn wait_drained(&mut self, deadline: Deadline) -> io::Result<()> {
        let Some(own) = self.log_writer.take() else {
            return Ok(());
        };
        loop {
            // What has come by the deadline is handled.
            let time_left = deadline.time_left(Instant::now());
            let ready = sys::socket::wait_ready(own.socket(), Interest::Read, time_left)?;
            match own.receive() {
                Some(LogReport::Drained) => return Ok(()),
                Some(report) => drop(self.handle_report(report)),
                None if !ready.readable => return Err(io::ErrorKind::TimedOut.into()),
                // The log writer is dead.
                None => return Ok(()),
            }
        }
    }
}
