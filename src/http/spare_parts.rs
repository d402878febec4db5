//! The head of a request, and the memory that one head leaves to the next.
//!
//! A `HeaderMap` needs two allocations, and `Parts` is large. So a worker keeps one `Parts`: a head
//! is parsed into it, the handler's request is made of it, and it comes back when the handler
//! returns. Then it is empty, but its map has kept its room.

use ::http::request::Parts;
use ::http::{HeaderMap, Request, Uri};

/// A map with more room than this many fields is freed after its request.
const MAX_SPARE_FIELDS: usize = 64;

/// A worker's [`Parts`]. Absent while a handler has them.
#[derive(Debug, Default)]
pub(super) struct SpareParts {
    parts: Option<Parts>,
    /// The parts are those of a request, or of a part of one.
    is_filled: bool,
}

impl SpareParts {
    /// Empty parts, to be filled.
    #[inline]
    pub(super) fn fill(&mut self) -> &mut Parts {
        let parts = self.parts.get_or_insert_with(blank);
        if std::mem::replace(&mut self.is_filled, true) {
            // The head that they were filled with was rejected, or is parsed again.
            clear(parts);
        }
        parts
    }

    /// The parts as they are.
    pub(super) fn filled(&mut self) -> &Parts {
        self.parts.get_or_insert_with(blank)
    }

    /// Takes the parts out.
    #[inline]
    pub(super) fn take(&mut self) -> Parts {
        self.is_filled = false;
        self.parts.take().unwrap_or_else(blank)
    }

    /// Puts the parts of a request in.
    pub(super) fn put(&mut self, parts: Parts) {
        self.parts = Some(parts);
        self.is_filled = true;
    }

    /// Takes the parts of a request back that has been handled. Drops what the handler has left in
    /// them.
    #[inline]
    pub(super) fn reuse(&mut self, parts: Parts) {
        clear(self.parts.insert(parts));
    }
}

fn blank() -> Parts {
    Request::new(()).into_parts().0
}

/// Empties the parts. The method and the version stay: every head sets them.
#[inline]
fn clear(parts: &mut Parts) {
    parts.uri = Uri::default();
    parts.extensions.clear();
    if parts.headers.capacity() > MAX_SPARE_FIELDS {
        parts.headers = HeaderMap::new();
    }
    parts.headers.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{HeaderValue, header};

    #[test]
    fn nothing_of_a_head_is_left_for_the_next_but_its_room() {
        let mut spare = SpareParts::default();
        let fill = |parts: &mut Parts| {
            assert!(parts.headers.is_empty() && parts.uri == "/" && parts.extensions.is_empty());
            parts.uri = Uri::from_static("/private?token");
            let value = HeaderValue::from_static("secret");
            parts.headers.append(header::COOKIE, value.clone());
            parts.headers.append(header::COOKIE, value);
            parts.extensions.insert("mine");
        };
        // Rejected, rejected, handled, spooled.
        fill(spare.fill());
        fill(spare.fill());
        let parts = spare.take();
        let room = parts.headers.capacity();
        spare.reuse(parts);
        let parts = spare.fill();
        assert_eq!(parts.headers.capacity(), room);
        fill(parts);
        let parts = spare.take();
        fill(spare.fill());
        spare.put(parts);
        assert_eq!(spare.filled().headers.len(), 2);
        fill(spare.fill());
    }

    #[test]
    fn a_large_map_is_freed() {
        let mut spare = SpareParts::default();
        spare.fill().headers.reserve(MAX_SPARE_FIELDS + 1);
        let parts = spare.take();
        spare.reuse(parts);
        assert_eq!(spare.fill().headers.capacity(), 0);
    }
}
