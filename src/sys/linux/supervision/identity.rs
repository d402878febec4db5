//! Linux: users and groups by their names or numbers.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::sys::{Credentials, Identity, Login};

/// Looks up what a program is to be started as (getpwnam(3), getgrouplist(3)). Without a group, the
/// group is the user's. The supplementary groups are those that list the user, as with
/// initgroups(3); of a group without a user, there are none.
///
/// # Errors
///
/// `NotFound` if there is no such user or group, and `PermissionDenied` if this process is not
/// root's and the identity is another one than its own.
pub(crate) fn find_identity(
    user: Option<&str>,
    group: Option<&str>,
    no_new_privileges: bool,
) -> io::Result<Identity> {
    let entry = user.map(find_user).transpose()?;
    let group = group.map(find_group).transpose()?;
    let uid = entry.as_ref().map_or(Uid::effective(), |(uid, _)| *uid);
    let own_group = entry
        .as_ref()
        .and_then(|(_, entry)| Some(entry.as_ref()?.gid));
    let gid = match (group.map(Gid::from_raw).or(own_group), user) {
        (Some(gid), _) => gid,
        (None, Some(user)) => {
            let text = format!("user {user} is not in the user database: a group has to be set");
            return Err(io::Error::new(ErrorKind::NotFound, text));
        }
        (None, None) => Gid::effective(),
    };
    let login = entry.map(|(uid, entry)| match entry {
        Some(entry) => Login {
            name: entry.name,
            home: entry.dir,
            shell: entry.shell,
        },
        None => Login {
            name: uid.to_string(),
            home: PathBuf::from("/"),
            shell: PathBuf::from("/bin/sh"),
        },
    });
    let groups = match &login {
        Some(login) => getgrouplist(&CString::new(login.name.as_str())?, gid)?,
        None => vec![gid],
    };
    let is_own = uid == Uid::effective() && gid == Gid::effective();
    if !Uid::effective().is_root() && !is_own {
        let text = "only root can start processes as another user or group";
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    let credentials = Credentials {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    };
    Ok(Identity {
        credentials: Uid::effective().is_root().then_some(credentials),
        login,
        no_new_privileges,
    })
}

/// A user, by its name or else by its number, which need not be in the user database.
fn find_user(user: &str) -> io::Result<(Uid, Option<User>)> {
    let entry = match (User::from_name(user)?, to_number(user)) {
        (Some(entry), _) => Some(entry),
        (None, Some(number)) => match User::from_uid(Uid::from_raw(number))? {
            None => return Ok((Uid::from_raw(number), None)),
            entry => entry,
        },
        (None, None) => None,
    };
    let not_found = || io::Error::new(ErrorKind::NotFound, format!("there is no user {user:?}"));
    let entry = entry.ok_or_else(not_found)?;
    Ok((entry.uid, Some(entry)))
}

/// The number of a group, by its name or else by its number (getgrnam(3)).
///
/// # Errors
///
/// `NotFound` if there is no such group.
pub(crate) fn find_group(group: &str) -> io::Result<u32> {
    let found = Group::from_name(group)?.map(|entry| entry.gid.as_raw());
    found
        .or_else(|| to_number(group))
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("there is no group {group:?}")))
}

/// The largest number means "no change" to the system (setresuid(2)).
fn to_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_others_named() {
        assert_eq!(find_group("root").unwrap(), 0);
        assert_eq!(find_group("4711").unwrap(), 4711);
        for no_number in ["no-such-name", "4294967295", "-1", ""] {
            let error = find_group(no_number).unwrap_err().to_string();
            assert_eq!(error, format!("there is no group {no_number:?}"));
            let error = find_identity(Some(no_number), None, true).unwrap_err();
            assert_eq!(error.to_string(), format!("there is no user {no_number:?}"));
        }
        let error = find_identity(Some("4123456"), None, true).unwrap_err();
        assert!(
            error.to_string().contains("a group has to be set"),
            "{error}"
        );
        let found = find_identity(Some("root"), None, true);
        match Uid::effective().is_root() {
            true => assert_eq!(found.unwrap().credentials.unwrap().uid, 0),
            false => assert_eq!(found.unwrap_err().kind(), ErrorKind::PermissionDenied),
        }
    }
}
