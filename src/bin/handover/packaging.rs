//! What a packager installs beside the program: completions for shells, and manual pages.

use std::io;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::CommandResult;
use super::output::print;

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The command that the page is about, such as "run". Defaults to the program itself
    command: Option<String>,
}

impl CompletionsArgs {
    pub(super) fn execute(self, mut program: Command) -> CommandResult {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut program, "handover", &mut text);
        print_bytes(text)
    }
}

impl ManArgs {
    pub(super) fn execute(self, mut program: Command) -> CommandResult {
        // A command gets its full name, such as "handover-run".
        program.build();
        let page = match &self.command {
            None => Man::new(program),
            Some(name) => {
                let command = program.find_subcommand(name);
                let command = command.ok_or_else(|| format!("there is no command {name:?}"))?;
                Man::new(command.clone())
            }
        };
        let mut text = Vec::new();
        page.source(concat!("handover ", env!("CARGO_PKG_VERSION")))
            .manual("handover")
            .render(&mut text)?;
        print_bytes(text)
    }
}

fn print_bytes(text: Vec<u8>) -> CommandResult {
    print(&String::from_utf8(text).map_err(io::Error::other)?)?;
    Ok(ExitCode::SUCCESS)
}
