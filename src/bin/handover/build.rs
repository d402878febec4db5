//! The build script: `cargo install` without the feature `cli` ends at once, and says why.
//!
//! Without it, cargo builds the library first, which takes a minute, and says then that there is
//! nothing to install. All other builds go on.

use std::env;
use std::fs;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=src/bin/handover/build.rs");
    // Not for a program that is installed and uses this library: cargo sets this variable for the
    // package that it was called for.
    let is_for_this_package = option_env!("CARGO_PRIMARY_PACKAGE").is_some();
    let has_command = env::var_os("CARGO_FEATURE_CLI").is_some();
    if is_for_this_package && !has_command && is_install() {
        println!(
            "cargo::error=the command `handover` needs the feature `cli`: cargo install handover \
             --features cli"
        );
    }
}

/// Whether cargo was called as `cargo install`.
fn is_install() -> bool {
    builds_in_directory_for_install() || is_parent_install().unwrap_or(false)
}

/// The directory that cargo makes for the install of a package that is not on this machine.
fn builds_in_directory_for_install() -> bool {
    let Some(out_dir) = env::var_os("OUT_DIR") else {
        return false;
    };
    let mut parts = Path::new(&out_dir).iter();
    parts.any(|part| part.to_string_lossy().starts_with("cargo-install"))
}

/// The arguments of the parent process, for `cargo install --path`; `None` where there is no /proc
/// (proc(5)).
fn is_parent_install() -> Option<bool> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let parent = after_name.split(' ').nth(1)?;
    let arguments = fs::read_to_string(format!("/proc/{parent}/cmdline")).ok()?;
    // Behind the name, and behind a toolchain such as `+stable`.
    let mut arguments = arguments.split('\0').skip(1);
    let command = arguments.find(|argument| !argument.starts_with(['+', '-']));
    Some(command == Some("install"))
}
