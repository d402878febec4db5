//! What the examples share: their command line, and the lines that say that they are ready.

use handover::{Addr, Builder, Server};

/// The options that every example takes.
pub(crate) struct Options {
    pub(crate) listen: Vec<String>,
    pub(crate) workers: Option<usize>,
    /// What is neither `--listen` nor `--workers`.
    pub(crate) rest: Vec<String>,
}

impl Options {
    /// Reads the command line; without `--listen` it is `default`.
    pub(crate) fn parse(default: &str) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            listen: Vec::new(),
            workers: None,
            rest: Vec::new(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("listen") => options.listen.push(parser.value()?.string()?),
                Long("workers") => options.workers = Some(parser.value()?.parse()?),
                Value(value) => options.rest.push(value.string()?),
                other => return Err(other.unexpected()),
            }
        }
        if options.listen.is_empty() {
            options.listen.push(default.to_owned());
        }
        Ok(options)
    }

    /// The settings that follow from them.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = Server::builder();
        for addr in &self.listen {
            builder = builder.listen(addr);
        }
        match self.workers {
            Some(workers) => builder.workers(workers),
            None => builder,
        }
    }
}

/// Says that the server is ready: scripts wait for these lines.
pub(crate) fn announce(addrs: &[Addr]) {
    for addr in addrs {
        println!("listening on {addr}");
    }
}
