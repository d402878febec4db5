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
//! So a client whose lines differ each time costs no more than the comparison.

use std::ops::Range;

use ::http::request::Parts;
use ::http::{HeaderMap, Request, Uri};
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
    /// The parts besides the map are those of a request.
    is_filled: bool,
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
    /// The names, one behind the other, as the map has them.
    names: String,
    /// Where each field's name is in `names`, and its value in `lines`. Empty if that is not
    /// recorded.
    positions: Vec<(Range<usize>, Range<usize>)>,
}

impl SpareParts {
    /// Empty parts, to be filled.
    #[inline]
    pub(super) fn fill(&mut self) -> &mut Parts {
        let parts = self.parts.get_or_insert_with(blank);
        if std::mem::replace(&mut self.is_filled, true) {
            // The head that they were filled with was rejected, or is parsed again.
            clear_rest(parts);
        }
        parts.headers.clear();
        self.kept.lines = Bytes::new();
        parts
    }

    /// Parts that have the fields of these lines, and are empty besides; and the kept fields.
    /// `None` if the map does not have these fields, or more than `most`.
    #[inline]
    pub(super) fn refill(
        &mut self,
        lines: &[u8],
        most: usize,
    ) -> Option<(&mut Parts, &KeptFields)> {
        let kept = &self.kept;
        self.is_repeated = !kept.lines.is_empty() && lines.starts_with(&kept.lines);
        if !self.is_repeated || kept.positions.len() > most {
            return None;
        }
        let parts = self.parts.as_mut()?;
        if !kept.are_in(&parts.headers) {
            return None;
        }
        if std::mem::replace(&mut self.is_filled, true) {
            clear_rest(parts);
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
        let KeptFields {
            names, positions, ..
        } = &mut self.kept;
        positions.clear();
        if lines.len() > MAX_KEPT_LINES {
            return;
        }
        if let (Some(parts), true) = (&self.parts, self.is_repeated) {
            names.clear();
            for ((name, field), value) in parts.headers.iter().zip(values) {
                // Where a name occurs twice, the map may have another order than the lines.
                if lines.get(value.clone()) != Some(field.as_bytes()) {
                    self.kept.lines = Bytes::new();
                    return;
                }
                let start = names.len();
                names.push_str(name.as_str());
                positions.push((start..names.len(), value));
            }
        }
        (self.kept.lines, self.kept.control) = (lines, control);
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

    /// Puts the parts of a request in that was received before.
    pub(super) fn put(&mut self, parts: Parts) {
        self.parts = Some(parts);
        self.is_filled = true;
        self.kept.lines = Bytes::new();
    }

    /// Takes the parts of a request back that was handled. Drops what the handler has left in them,
    /// except the map's fields.
    #[inline]
    pub(super) fn reuse(&mut self, parts: Parts) {
        let parts = self.parts.insert(parts);
        clear_rest(parts);
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
        let mut fields = map.iter().zip(&self.positions);
        !self.positions.is_empty()
            && self.positions.len() == map.len()
            && fields.all(|((name, value), (kept_name, kept_value))| {
                self.names[kept_name.clone()] == *name.as_str()
                    && self.lines[kept_value.clone()] == *value.as_bytes()
                    && !value.is_sensitive()
            })
    }
}

fn blank() -> Parts {
    Request::new(()).into_parts().0
}

/// Empties the parts, except the map. The method and the version stay: every head sets them.
#[inline]
fn clear_rest(parts: &mut Parts) {
    // A new value would have to be written, and the old one to be dropped.
    if parts.uri.path() != "/" || parts.uri.query().is_some() || parts.uri.authority().is_some() {
        parts.uri = Uri::default();
    }
    parts.extensions.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{HeaderValue, header};

    fn fill(parts: &mut Parts) {
        assert!(parts.headers.is_empty() && parts.uri == "/" && parts.extensions.is_empty());
        parts.uri = Uri::from_static("//?");
        let value = HeaderValue::from_static("secret");
        parts.headers.append(header::COOKIE, value.clone());
        parts.headers.append(header::COOKIE, value);
        parts.extensions.insert("mine");
    }

    #[test]
    fn nothing_of_a_head_is_left_for_the_next_but_its_room() {
        let mut spare = SpareParts::default();
        // Rejected, rejected, handled.
        fill(spare.fill());
        fill(spare.fill());
        let parts = spare.take();
        let room = parts.headers.capacity();
        spare.reuse(parts);
        assert_eq!(spare.filled().headers.capacity(), room);
        assert!(spare.filled().uri == "/" && spare.filled().extensions.is_empty());
        // Spooled, while another one is handled.
        fill(spare.fill());
        let spooled = spare.take();
        fill(spare.fill());
        let parts = spare.take();
        spare.reuse(parts);
        spare.put(spooled);
        assert_eq!(spare.filled().headers.len(), 2);
        fill(spare.fill());
    }

    #[test]
    fn a_large_map_is_freed() {
        let mut spare = SpareParts::default();
        spare.fill().headers.reserve(MAX_SPARE_FIELDS + 1);
        let parts = spare.take();
        spare.reuse(parts);
        assert_eq!(spare.filled().headers.capacity(), 0);
    }
}
