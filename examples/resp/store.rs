//! The keys and their values, and the clients that wait for an element of a list (BLPOP).
//!
//! One lock is over all of it, so that each command is atomic, as in Redis. No system call is made
//! under the lock: the clients to wake are collected, and woken after it.
//!
//! A list's element goes to the client that has waited longest for the list. It leaves the list at
//! once, and is kept for the client until the client's connection is called. If the client leaves
//! before that, the drop of its [`BlockedPop`] puts the element back.
//!
//! A key that has expired is removed when a command asks for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use handover::Waker;
use parking_lot::Mutex;

use crate::protocol::{Failure, integer};

#[derive(Default)]
pub(crate) struct Store(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    entries: HashMap<Bytes, Entry>,
    waiters: HashMap<Ticket, Waiter>,
    /// Who waits for which list. Of those that wait for a list, the lowest ticket waits longest.
    waiting: BTreeSet<(Bytes, Ticket)>,
    next_ticket: Ticket,
}

struct Entry {
    value: Value,
    expires_at: Option<Instant>,
}

enum Value {
    Text(Bytes),
    /// Never empty: a list without elements is no key.
    List(VecDeque<Bytes>),
}

/// The place of a client among those that wait.
type Ticket = u64;

struct Waiter {
    keys: Vec<Bytes>,
    waker: Waker,
    element: Option<Element>,
}

/// An element, and the list that it was in.
pub(crate) struct Element {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
}

/// An end of a list.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Left,
    Right,
}

/// What [`Store::set`] does besides setting the value.
#[derive(Clone, Copy, Default)]
pub(crate) struct SetOptions {
    pub(crate) expires_at: Option<Instant>,
    /// Set the value only if the key exists, or only if it does not.
    pub(crate) only_if_exists: Option<bool>,
}

impl Store {
    pub(crate) fn get(&self, key: &Bytes) -> Result<Option<Bytes>, Failure> {
        match self.0.lock().entry(key).map(|entry| &entry.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::List(_)) => Err(Failure::WRONG_TYPE),
        }
    }

    /// False if the condition of the options does not hold.
    pub(crate) fn set(&self, key: &Bytes, value: &Bytes, options: SetOptions) -> bool {
        let mut keys = self.0.lock();
        if let Some(exists) = options.only_if_exists {
            if keys.entry(key).is_some() != exists {
                return false;
            }
        }
        let value = Value::Text(value.clone());
        let expires_at = options.expires_at;
        keys.entries
            .insert(key.clone(), Entry { value, expires_at });
        true
    }

    /// Returns how many of the keys existed.
    pub(crate) fn delete(&self, names: &[Bytes]) -> usize {
        let mut keys = self.0.lock();
        let delete =
            |key: &&Bytes| keys.entry(key).is_some() && keys.entries.remove(*key).is_some();
        names.iter().filter(delete).count()
    }

    pub(crate) fn exist(&self, names: &[Bytes]) -> usize {
        let mut keys = self.0.lock();
        names.iter().filter(|key| keys.entry(key).is_some()).count()
    }

    pub(crate) fn increment(&self, key: &Bytes) -> Result<i64, Failure> {
        let mut keys = self.0.lock();
        let Some(entry) = keys.entry(key) else {
            let value = Value::Text(Bytes::from_static(b"1"));
            let expires_at = None;
            keys.entries
                .insert(key.clone(), Entry { value, expires_at });
            return Ok(1);
        };
        let Value::Text(text) = &mut entry.value else {
            return Err(Failure::WRONG_TYPE);
        };
        let number = integer(text).ok_or(Failure::NOT_AN_INTEGER)?;
        let number = number
            .checked_add(1)
            .ok_or(Failure::new("ERR increment or decrement would overflow"))?;
        *text = number.to_string().into();
        Ok(number)
    }

    /// Returns whether the key existed.
    pub(crate) fn expire(&self, key: &Bytes, at: Instant) -> bool {
        let mut keys = self.0.lock();
        let entry = keys.entry(key);
        entry.map(|entry| entry.expires_at = Some(at)).is_some()
    }

    /// How long the key will exist: `None` if there is no such key, `Some(None)` for ever.
    pub(crate) fn time_to_live(&self, key: &Bytes) -> Option<Option<Duration>> {
        let expires_at = self.0.lock().entry(key)?.expires_at;
        Some(expires_at.map(|at| at.saturating_duration_since(Instant::now())))
    }

    /// Adds elements to a list, which is made if it does not exist. Returns its length, before
    /// elements go to clients that wait for them.
    pub(crate) fn push(&self, key: &Bytes, values: &[Bytes], end: End) -> Result<usize, Failure> {
        let mut keys = self.0.lock();
        let length = keys.push(key, values, end)?;
        let wakers = keys.serve_waiters(key);
        drop(keys);
        wake(&wakers);
        Ok(length)
    }

    /// Takes up to `count` elements out of a list. `None` if there is no such list.
    pub(crate) fn pop(
        &self,
        key: &Bytes,
        count: usize,
        end: End,
    ) -> Result<Option<Vec<Bytes>>, Failure> {
        self.0.lock().pop(key, count, end)
    }

    pub(crate) fn length(&self, key: &Bytes) -> Result<usize, Failure> {
        let mut keys = self.0.lock();
        Ok(keys.list(key)?.map_or(0, |list| list.len()))
    }

    /// How many clients wait for an element.
    pub(crate) fn blocked_clients(&self) -> usize {
        self.0.lock().waiters.len()
    }

    /// Takes the first element of the first of the lists that exists. If none does, the client waits
    /// for one.
    pub(crate) fn pop_or_wait(
        self: &Arc<Self>,
        lists: &[Bytes],
        waker: Waker,
    ) -> Result<Result<Element, BlockedPop>, Failure> {
        let mut keys = self.0.lock();
        for key in lists {
            let popped = keys.pop(key, 1, End::Left)?;
            if let Some(value) = popped.and_then(|mut values| values.pop()) {
                let key = key.clone();
                return Ok(Ok(Element { key, value }));
            }
        }
        let ticket = keys.next_ticket;
        keys.next_ticket += 1;
        keys.waiting
            .extend(lists.iter().map(|key| (key.clone(), ticket)));
        let waiter = Waiter {
            keys: lists.to_vec(),
            waker,
            element: None,
        };
        keys.waiters.insert(ticket, waiter);
        let store = Arc::clone(self);
        Ok(Err(BlockedPop { store, ticket }))
    }
}

impl Keys {
    /// The entry of a key, unless it has expired.
    fn entry(&mut self, key: &Bytes) -> Option<&mut Entry> {
        let expires_at = self.entries.get(key)?.expires_at;
        // The clock is read only for a key that expires.
        if expires_at.is_some_and(|at| at <= Instant::now()) {
            self.entries.remove(key);
        }
        self.entries.get_mut(key)
    }

    fn list(&mut self, key: &Bytes) -> Result<Option<&mut VecDeque<Bytes>>, Failure> {
        match self.entry(key).map(|entry| &mut entry.value) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(list)),
            Some(Value::Text(_)) => Err(Failure::WRONG_TYPE),
        }
    }

    fn push(&mut self, key: &Bytes, values: &[Bytes], end: End) -> Result<usize, Failure> {
        if self.list(key)?.is_none() {
            let value = Value::List(VecDeque::new());
            let expires_at = None;
            self.entries
                .insert(key.clone(), Entry { value, expires_at });
        }
        let Some(list) = self.list(key)? else {
            return Ok(0);
        };
        for value in values.iter().cloned() {
            match end {
                End::Left => list.push_front(value),
                End::Right => list.push_back(value),
            }
        }
        Ok(list.len())
    }

    fn pop(&mut self, key: &Bytes, count: usize, end: End) -> Result<Option<Vec<Bytes>>, Failure> {
        let Some(list) = self.list(key)? else {
            return Ok(None);
        };
        let count = count.min(list.len());
        let values = match end {
            End::Left => list.drain(..count).collect(),
            End::Right => list.drain(list.len() - count..).rev().collect(),
        };
        if list.is_empty() {
            self.entries.remove(key);
        }
        Ok(Some(values))
    }

    /// Gives the elements of a list to the clients that wait for them. The caller wakes the clients
    /// after the lock.
    fn serve_waiters(&mut self, key: &Bytes) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(ticket) = self.longest_waiter(key) {
            let Ok(Some(mut values)) = self.pop(key, 1, End::Left) else {
                break;
            };
            let keys = self.waiters.get(&ticket).map(|waiter| waiter.keys.clone());
            self.end_waiting(ticket, &keys.unwrap_or_default());
            if let (Some(waiter), Some(value)) = (self.waiters.get_mut(&ticket), values.pop()) {
                let key = key.clone();
                waiter.element = Some(Element { key, value });
                wakers.push(waiter.waker.clone());
            }
        }
        wakers
    }

    fn longest_waiter(&self, key: &Bytes) -> Option<Ticket> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut waiters = self.waiting.range((key.clone(), 0)..);
        let (longest, ticket) = waiters.next()?;
        (longest == key).then_some(*ticket)
    }

    fn end_waiting(&mut self, ticket: Ticket, keys: &[Bytes]) {
        for key in keys {
            self.waiting.remove(&(key.clone(), ticket));
        }
    }
}

/// A client that waits for an element. The session of its connection has it, so that the wait ends
/// with the connection, however that ends.
pub(crate) struct BlockedPop {
    store: Arc<Store>,
    ticket: Ticket,
}

impl BlockedPop {
    /// Takes the element that has come. From then on, it is the caller's.
    pub(crate) fn take(&self) -> Option<Element> {
        let mut keys = self.store.0.lock();
        keys.waiters.get_mut(&self.ticket)?.element.take()
    }
}

impl Drop for BlockedPop {
    /// Ends the wait. An element that has come meanwhile goes back to where it was, and from there
    /// to the next client.
    fn drop(&mut self) {
        let mut keys = self.store.0.lock();
        let Some(waiter) = keys.waiters.remove(&self.ticket) else {
            return;
        };
        keys.end_waiting(self.ticket, &waiter.keys);
        let Some(Element { key, value }) = waiter.element else {
            return;
        };
        // An error: the key has become a text, which has replaced the list and its elements.
        let _ = keys.push(&key, &[value], End::Left);
        let wakers = keys.serve_waiters(&key);
        drop(keys);
        wake(&wakers);
    }
}

fn wake(clients: &[Waker]) {
    for client in clients {
        // If the client has left, the drop of its `BlockedPop` passes the element on.
        client.wake();
    }
}
