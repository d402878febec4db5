//! The pages of the demo that its own threads send: a clock for `/later` and `/events`, and a
//! publisher for `/subscribe`. However many clients wait, they hold no worker.

use std::collections::{BTreeMap, VecDeque};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handover::http::{
    Chunk, CloseReason, Event, Events, HeaderValue, Reply, Responder, Response, StatusCode, header,
};

/// How many bytes a client may be behind. A client that is further behind is dropped.
const CAPACITY: usize = 64 * 1024;

/// How often subscribers get a comment, so that one that has left is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How many published events a client that connects again can get.
const HISTORY: usize = 1000;

/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);

/// Answers after so many milliseconds.
pub(crate) fn later(millis: u64) -> Response<Reply> {
    let delay = Duration::from_millis(millis);
    let (responder, reply) = Reply::later(delay.saturating_add(Duration::from_secs(30)));
    set_alarm(delay, Alarm::Answer { responder, millis });
    Response::new(reply)
}

/// Sends an event each `every`, from the one after `last` on.
pub(crate) fn events(every: Duration, last: u64) -> Response<Reply> {
    let (events, response) = Events::channel(CAPACITY);
    let next = last.saturating_add(1);
    let alarm = Alarm::Event {
        events,
        every,
        next,
    };
    set_alarm(Duration::ZERO, alarm);
    response
}

/// Sends what is published from now on, and what was published after the event `last`.
pub(crate) fn subscribe(last: Option<u64>) -> Response<Reply> {
    let (events, response) = Events::channel(CAPACITY);
    events.on_close(|reason| {
        if reason == CloseReason::Draining {
            IS_DRAINING.store(true, SeqCst);
        }
    });
    // If the publisher has ended, the events are dropped, and the stream ends.
    let _ = PUBLISHER.send(Order::Subscribe(events, last));
    response
}

/// Sends a text to all subscribers. The response comes when it is sent. `None` if the text is too
/// long: a subscriber that has read all it was sent must have room for it.
pub(crate) fn publish(text: &str) -> Option<Response<Reply>> {
    // Each line of the text becomes a field of the event.
    let length = text.len() + 10 * text.lines().count();
    if length > CAPACITY / 4 {
        return None;
    }
    let (responder, reply) = Reply::later(Duration::from_secs(30));
    let text = text.to_owned();
    // If the publisher has ended, the responder is dropped: the client gets 500.
    let _ = PUBLISHER.send(Order::Publish { text, responder });
    Some(Response::new(reply))
}

/// The response to a client that publishes while the server drains. The subscribers are on their
/// way to the next process, which does not know this one's history. If the client publishes again,
/// it reaches that process.
pub(crate) fn not_published() -> Response<Reply> {
    let mut response = Response::new("the server stops or restarts\n".into());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let retry_after = HeaderValue::from_static("1");
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, retry_after);
    response
}

// ---- the clock ----

enum Alarm {
    Answer {
        responder: Responder,
        millis: u64,
    },
    Event {
        events: Events,
        every: Duration,
        next: u64,
    },
}

static CLOCK: LazyLock<SyncSender<(Instant, Alarm)>> =
    LazyLock::new(|| start("demo-clock", run_clock));

fn set_alarm(delay: Duration, alarm: Alarm) {
    // An alarm beyond what the clock can express never rings: its client gets 500.
    if let Some(at) = Instant::now().checked_add(delay) {
        let _ = CLOCK.send((at, alarm));
    }
}

fn run_clock(alarms: Receiver<(Instant, Alarm)>) {
    // The number tells alarms of the same time apart.
    let mut waiting: BTreeMap<(Instant, u64), Alarm> = BTreeMap::new();
    let mut turn = Turn::default();
    for number in 0_u64.. {
        let now = Instant::now();
        while let Some(first) = waiting.first_entry().filter(|first| first.key().0 <= now) {
            let (at, alarm) = first.remove_entry();
            turn.take();
            if let Some((later, alarm)) = ring(at, alarm) {
                waiting.insert(later, alarm);
            }
        }
        let next = waiting.first_key_value().map(|((at, _), _)| *at);
        let left = next.map_or(Duration::from_secs(3600), |at| at - now);
        match alarms.recv_timeout(left) {
            Ok((at, alarm)) => drop(waiting.insert((at, number), alarm)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Sends what is due. Returns the next alarm, if there is one.
fn ring((at, number): (Instant, u64), alarm: Alarm) -> Option<((Instant, u64), Alarm)> {
    match alarm {
        Alarm::Answer { responder, millis } => {
            // An error says that the client has left.
            let _ = responder.send(Response::new(format!("later {millis}")));
            None
        }
        Alarm::Event {
            events,
            every,
            next,
        } => {
            let text = next.to_string();
            let event = Event::new().id(&text).data(&text);
            events.try_send(event).ok()?;
            let later = (at.checked_add(every)?, number);
            let next = next.saturating_add(1);
            let alarm = Alarm::Event {
                events,
                every,
                next,
            };
            Some((later, alarm))
        }
    }
}

// ---- the publisher ----

enum Order {
    Subscribe(Events, Option<u64>),
    Publish { text: String, responder: Responder },
}

/// A stream has ended because the server drains.
static IS_DRAINING: AtomicBool = AtomicBool::new(false);

static PUBLISHER: LazyLock<SyncSender<Order>> =
    LazyLock::new(|| start("demo-publisher", run_publisher));

fn run_publisher(orders: Receiver<Order>) {
    let mut subscribers: Vec<Events> = Vec::new();
    let mut history = VecDeque::new();
    let mut last_id = 0;
    let mut heartbeat = Instant::now() + HEARTBEAT;
    loop {
        let left = heartbeat.saturating_duration_since(Instant::now());
        match orders.recv_timeout(left) {
            Ok(Order::Subscribe(events, last)) => {
                // Without an id, a client whose stream ends before its first event could not say
                // from where on it has missed events.
                let last = last.unwrap_or_else(|| {
                    last_id = next_id(last_id);
                    last_id
                });
                if replay(&events, last, &history) {
                    subscribers.push(events);
                }
            }
            Ok(Order::Publish { text, responder }) => {
                last_id = next_id(last_id);
                let event = Event::new().id(&last_id.to_string()).data(&text);
                let event = Chunk::from(event);
                send_to_all(&mut subscribers, &event);
                if history.len() == HISTORY {
                    history.pop_front();
                }
                history.push_back((last_id, event));
                // Read after the sends: one that has failed because of the drain is seen.
                let response = match IS_DRAINING.load(SeqCst) {
                    true => not_published(),
                    false => accepted(),
                };
                // An error says that the client has left.
                let _ = responder.send(response);
            }
            Err(RecvTimeoutError::Timeout) => {
                heartbeat = Instant::now() + HEARTBEAT;
                let comment = Chunk::from(Event::new().comment(""));
                send_to_all(&mut subscribers, &comment);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn accepted() -> Response<Reply> {
    let mut response = Response::new("published\n".into());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// Sends an event to all. A subscriber that has left, or that reads too slowly, is dropped.
fn send_to_all(subscribers: &mut Vec<Events>, event: &Chunk) {
    let mut turn = Turn::default();
    subscribers.retain(|events| {
        turn.take();
        events.try_send(event.clone()).is_ok()
    });
}

/// An id by the time, so that the ids go on in the process that comes next.
fn next_id(last_id: u64) -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = time.map_or(0, |time| time.as_micros() as u64);
    time.max(last_id + 1)
}

/// Sends a client what it has missed since the event `last`. False if it has left. A client that
/// has missed more than there is room for gets the first part: it is dropped with the next event,
/// and connects again for the rest.
fn replay(events: &Events, last: u64, history: &VecDeque<(u64, Chunk)>) -> bool {
    let first = Event::new().id(&last.to_string()).retry(RETRY);
    let missed = history.iter().filter(|(id, _)| *id > last);
    events.try_send(first).is_ok()
        && missed
            .map(|(_, event)| event.clone())
            .all(|event| events.try_send(event).is_ok())
}

// ---- threads ----

/// A thread that sends to thousands at once lets other threads run in between: the workers, if there
/// are fewer CPUs than threads.
#[derive(Default)]
struct Turn(u32);

impl Turn {
    fn take(&mut self) {
        self.0 = (self.0 + 1) % 16;
        if self.0 == 0 {
            thread::yield_now();
        }
    }
}

/// Starts a thread, which gets what is sent to it until the process ends.
fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce(Receiver<T>) + Send + 'static,
) -> SyncSender<T> {
    let (sender, receiver) = sync_channel(1024);
    let thread = thread::Builder::new().name(name.to_owned());
    if let Err(error) = thread.spawn(move || run(receiver)) {
        // The receiver is gone: clients get 500, and streams end.
        eprintln!("cannot start the thread {name}: {error}");
    }
    sender
}
