//! The build script: `cargo install` without the feature `cli` ends early, and says why. Otherwise
//! cargo builds the whole library first, and says then that there is nothing to install.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=src/bin/handover/build.rs");
    // Not for a program that is installed and uses this library: cargo sets this variable for the
    // package that it was called for.
    let is_for_this_package = option_env!("CARGO_PRIMARY_PACKAGE").is_some();
    let has_command = env::var_os("CARGO_FEATURE_CLI").is_some();
    if is_for_this_package && !has_command && builds_in_directory_for_install() {
        println!(
            "cargo::error=the command `handover` needs the feature `cli`: cargo install handover \
             --features cli"
        );
    }
}

/// The directory that cargo makes for the install of a package that is not on this machine.
fn builds_in_directory_for_install() -> bool {
    let out_dir = env::var_os("OUT_DIR").unwrap_or_default();
    let mut parts = Path::new(&out_dir).iter();
    // The name ends with six random letters and digits.
    parts.any(|part| {
        let name = part.to_string_lossy();
        let random = name.strip_prefix("cargo-install");
        random.is_some_and(|end| end.len() == 6 && end.chars().all(|c| c.is_ascii_alphanumeric()))
    })
}
