//! The limits of a request.

/// The highest value of [`RequestLimits::fields`].
pub(super) const MAX_FIELDS: usize = 256;

/// The longest request that is accepted. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(super) struct RequestLimits {
    pub(super) request_line: usize,
    /// The request line and the field lines together.
    pub(super) head: usize,
    /// The number of fields in a head, at most [`MAX_FIELDS`].
    pub(super) fields: usize,
    /// A body up to this size is collected before the handler is called.
    pub(super) small_body: usize,
    pub(super) body: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            request_line: 8 * 1024,
            head: 16 * 1024,
            fields: 100,
            small_body: 64 * 1024,
            body: u64::MAX,
        }
    }
}
