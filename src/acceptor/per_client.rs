//! The limit of connections for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections each client has open, by its IP address.
#[derive(Default)]
pub(super) struct PerClient(Mutex<HashMap<IpAddr, usize>>);

impl PerClient {
    pub(super) fn count_connection(
        counts: &Arc<Self>,
        client: IpAddr,
        limit: usize,
    ) -> Result<ClientPlace, TooMany> {
        let mut map = counts.0.lock();
        let count = map.entry(client).or_default();
        if *count >= limit {
            return Err(TooMany);
        }
        *count += 1;
        Ok(ClientPlace {
            counts: Arc::clone(counts),
            client,
        })
    }
}

/// The client has as many connections as it may have.
pub(super) struct TooMany;

/// The place of a connection among those of its client, until it is dropped.
pub(super) struct ClientPlace {
    counts: Arc<PerClient>,
    client: IpAddr,
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut map = self.counts.0.lock();
        if let Some(count) = map.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_limit_and_gets_its_places_back() {
        let counts = Arc::new(PerClient::default());
        let (a, b) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        let first = PerClient::count_connection(&counts, a, 2);
        let second = PerClient::count_connection(&counts, a, 2);
        assert!(first.is_ok() && second.is_ok());
        assert!(PerClient::count_connection(&counts, a, 2).is_err());
        let other = PerClient::count_connection(&counts, b, 2);
        assert!(other.is_ok());
        drop(first);
        let third = PerClient::count_connection(&counts, a, 2);
        assert!(third.is_ok());
        drop((second, third, other));
        assert!(counts.0.lock().is_empty());
    }
}
