//! The head of a request, and what one head leaves to the next.
//!
//! A `HeaderMap` needs two allocations, and `Parts` is large. So a worker keeps one `Parts`: a head
//! is parsed into it, the handler's request is made of it, and it comes back when the handler
//! returns.
//!
//! Many clients send the same field lines with one request after the other: a balancer, another
//! program, a browser that fetches the parts of a page. So the map comes back with its fields, and
//! the field lines are kept that they were parsed from.
//!
//! | the next head's field lines | the map |
//! |---|---|
//! | other bytes | is filled again |
//! | the same bytes, for the first time | is filled again, and what it contains is recorded |
//! | the same bytes again, and the map is as recorded | is used as it is |
//! | the same bytes again, and a handler has changed the map | is filled again |
//!
//! So a client whose lines differ each time costs no more than the comparison. The URI comes back in
//! the same way: a target that is the last one again is not parsed again.

use std::ops::Range;

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, Request};
use bytes::Bytes;

use super::control_fields::ControlFields;

/// A map with more room than this many fields is freed after its request.
const MAX_SPARE_FIELDS: usize = 64;

/// Longer field lines are not kept. In bytes.
const MAX_KEPT_LINES: usize = 4 * 1024;

/// A worker's [`Parts`]. Absent while a handler has them.
#[derive(Debug, Default)]
pub(super) struct SpareParts {
    parts: Option<Parts>,
    /// The fields in the map of `parts`, if there are no others.
    kept: KeptFields,
    /// The head that is being parsed has the kept lines.
    is_repeated: bool,
}

/// The fields of one head.
#[derive(Debug, Default)]
pub(super) struct KeptFields {
    /// The field lines and the empty line behind them, as they were received. Empty if no fields
    /// are kept.
    pub(super) lines: Bytes,
    pub(super) control: ControlFields,
    /// Each field's name, and where its value is in `lines`, in the map's order. Empty if that is
    /// not recorded.
    fields: Vec<(HeaderName, Range<usize>)>,
}

impl SpareParts {
    /// Parts without fields and extensions, to be filled.
    #[inline]
    pub(super) fn fill(&mut self) -> &mut Parts {
        let parts = self.parts.get_or_insert_with(blank);
        parts.headers.clear();
        // A hook of the application that panicked may have left some.
        parts.extensions.clear();
        self.kept.lines = Bytes::new();
        parts
    }

    /// Parts that have the fields of these lines, and no extensions; and the kept fields.
    /// `None` if the map does not have these fields, or more than `most`.
    #[inline]
    pub(super) fn refill(
        &mut self,
        lines: &[u8],
        most: usize,
    ) -> Option<(&mut Parts, &KeptFields)> {
        let kept = &self.kept;
        self.is_repeated = !kept.lines.is_empty() && lines.starts_with(&kept.lines);
        if !self.is_repeated || kept.fields.len() > most {
            return None;
        }
        let parts = self.parts.as_mut()?;
        parts.extensions.clear();
        if !kept.are_in(&parts.headers) {
            return None;
        }
        Some((parts, kept))
    }

    /// Keeps the fields that the parts were just filled with, unless their lines are too long.
    /// `values` says where in the lines the values are.
    #[inline]
    pub(super) fn keep(
        &mut self,
        lines: Bytes,
        values: impl Iterator<Item = Range<usize>>,
        control: ControlFields,
    ) {
        let kept = &mut self.kept;
        kept.fields.clear();
        if lines.len() > MAX_KEPT_LINES {
            return;
        }
        if let (Some(parts), true) = (&self.parts, self.is_repeated) {
            for ((name, field), value) in parts.headers.iter().zip(values) {
                // Where a name occurs twice, the map may have another order than the lines.
                if lines.get(value.clone()) != Some(field.as_bytes()) {
                    kept.lines = Bytes::new();
                    return;
                }
                kept.fields.push((name.clone(), value));
            }
        }
        (kept.lines, kept.control) = (lines, control);
    }

    /// The parts as they are.
    pub(super) fn filled(&mut self) -> &Parts {
        self.parts.get_or_insert_with(blank)
    }

    /// Takes the parts out.
    #[inline(never)] // The parts are then copied in one piece.
    pub(super) fn take(&mut self) -> Parts {
        self.parts.take().unwrap_or_else(blank)
    }

    /// Puts the parts of a request in that was received before.
    pub(super) fn put(&mut self, parts: Parts) {
        self.parts = Some(parts);
        self.kept.lines = Bytes::new();
    }

    /// Takes the parts of a request back that was handled.
    #[inline]
    pub(super) fn put_back<B>(&mut self, request: Request<B>) {
        self.parts = Some(request.into_parts().0);
    }

    /// Drops the extensions that the handler has left in the parts, and a map that is too large. The
    /// method, the version and the URI stay: every head sets them.
    #[inline]
    pub(super) fn clean(&mut self) {
        let Some(parts) = &mut self.parts else { return };
        parts.extensions.clear();
        if parts.headers.capacity() > MAX_SPARE_FIELDS {
            self.kept.lines = Bytes::new();
            parts.headers = HeaderMap::new();
        }
    }
}

impl KeptFields {
    /// Whether the map has these fields and no others. False if they are not recorded.
    #[inline]
    fn are_in(&self, map: &HeaderMap) -> bool {
        let mut fields = map.iter().zip(&self.fields);
        !self.fields.is_empty()
            && self.fields.len() == map.len()
            && fields.all(|((name, value), (kept_name, position))| {
                let kept_value = &self.lines[position.clone()];
                // A value that comes from the lines is a part of their memory.
                let is_kept = std::ptr::eq(value.as_bytes(), kept_value)
                    || value.is_empty() && kept_value.is_empty();
                is_kept && name == kept_name && !value.is_sensitive()
            })
    }
}

fn blank() -> Parts {
    Request::new(()).into_parts().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{HeaderValue, header};

    fn fill(parts: &mut Parts) {
        assert!(parts.headers.is_empty() && parts.extensions.is_empty());
        let value = HeaderValue::from_static("secret");
        parts.headers.append(header::COOKIE, value.clone());
        parts.headers.append(header::COOKIE, value);
    }

    #[test]
    fn nothing_of_a_head_is_left_for_the_next_but_its_room() {
        let mut spare = SpareParts::default();
        // Rejected, rejected, handled.
        fill(spare.fill());
        fill(spare.fill());
        let mut parts = spare.take();
        let room = parts.headers.capacity();
        parts.extensions.insert("mine");
        spare.put_back(Request::from_parts(parts, ()));
        spare.clean();
        assert_eq!(spare.filled().headers.capacity(), room);
        assert!(spare.filled().extensions.is_empty());
        // Spooled, while another one is handled.
        fill(spare.fill());
        let spooled = spare.take();
        fill(spare.fill());
        let parts = spare.take();
        spare.put_back(Request::from_parts(parts, ()));
        spare.clean();
        spare.put(spooled);
        assert_eq!(spare.filled().headers.len(), 2);
        fill(spare.fill());
    }

    #[test]
    fn a_large_map_is_freed() {
        let mut spare = SpareParts::default();
        spare.fill().headers.reserve(MAX_SPARE_FIELDS + 1);
        let parts = spare.take();
        spare.put_back(Request::from_parts(parts, ()));
        spare.clean();
        assert_eq!(spare.filled().headers.capacity(), 0);
    }
}
