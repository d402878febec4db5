//! Windows: who may open a named object.
//!
//! Two rules of the system apply. The access rules of the object name users. And the label of the
//! object has an integrity level, and names the accesses (read, write, execute) that are denied to
//! processes with a lower level, even of the same user: so a program that was started with
//! administrator rights, or a service, is out of reach of its user's other programs. An object without
//! a level counts as one of level medium, so that a process of a higher level has to give the objects
//! that it makes a level.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetSidSubAuthority, GetSidSubAuthorityCount, GetTokenInformation, PSECURITY_DESCRIPTOR,
    SECURITY_ATTRIBUTES, TOKEN_INFORMATION_CLASS, TOKEN_MANDATORY_LABEL, TOKEN_QUERY, TOKEN_USER,
    TokenIntegrityLevel, TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};
use windows_sys::core::PWSTR;

/// The integrity level of objects that have none (SECURITY_MANDATORY_MEDIUM_RID).
const MEDIUM: u32 = 0x2000;

/// The integrity level of programs with administrator rights (SECURITY_MANDATORY_HIGH_RID). Objects
/// get no higher one, so that administrators control services of the system, whose level is higher.
const HIGH: u32 = 0x3000;

/// A security descriptor that lets in the user of this process, administrators and the system. If this
/// process has a higher level than medium, only programs with such a level may open the object.
#[derive(Debug)]
pub(in crate::sys) struct OwnersOnly(PSECURITY_DESCRIPTOR);

impl OwnersOnly {
    /// `access` is the access mask that they get. No entry is inherited from elsewhere.
    pub(in crate::sys) fn new(access: u32) -> io::Result<Self> {
        Self::parse(&descriptor_text(
            access,
            &own_user()?,
            own_integrity_level()?,
        ))
    }

    #[allow(unsafe_code)]
    fn parse(text: &str) -> io::Result<Self> {
        let text = super::wide(text);
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a null character, and the call writes one pointer to
        // `descriptor`. It needs no size.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        };
        match made {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(Self(descriptor)),
        }
    }

    /// For a call that creates an object, as long as this lives. No child inherits the handle.
    pub(in crate::sys) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.0,
            bInheritHandle: 0,
        }
    }
}

impl Drop for OwnersOnly {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the system has allocated the descriptor for this value alone.
        unsafe { LocalFree(self.0) };
    }
}

/// The security descriptor as text (Security Descriptor String Format). The label denies
/// processes of a lower level to write (NW), to read (NR), and to execute (NX), which includes a wait
/// for an event object. Such a wait would reset the event.
fn descriptor_text(access: u32, user: &str, level: u32) -> String {
    const SYSTEM: &str = "S-1-5-18";
    const ADMINISTRATORS: &str = "S-1-5-32-544";
    let mut sids = vec![SYSTEM, ADMINISTRATORS];
    if !sids.contains(&user) {
        sids.push(user);
    }
    let entries = sids.iter().map(|sid| format!("(A;;{access:#x};;;{sid})"));
    let label = (level > MEDIUM).then(|| format!("S:(ML;;NWNRNX;;;S-1-16-{})", level.min(HIGH)));
    let label = label.unwrap_or_default();
    format!("D:P{}{label}", entries.collect::<String>())
}

/// Longer than what the system tells of a token here with the longest identifier, and aligned for
/// it.
type TokenBuffer = [u64; 32];

/// What the system tells of the token of this process. The structure of the class is at the start of
/// the buffer, and has pointers into the buffer.
#[allow(unsafe_code)]
fn own_token_information(class: TOKEN_INFORMATION_CLASS) -> io::Result<Box<TokenBuffer>> {
    let mut token: HANDLE = ptr::null_mut();
    let mut buffer = Box::<TokenBuffer>::default();
    let mut length = 0;
    // SAFETY: the pointers are to live values, and the length is that of the buffer. The token is
    // closed once.
    unsafe {
        if OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) == 0 {
            return Err(io::Error::last_os_error());
        }
        let size = size_of::<TokenBuffer>() as u32;
        let into = buffer.as_mut_ptr().cast();
        let found = GetTokenInformation(token, class, into, size, &mut length);
        let error = io::Error::last_os_error();
        CloseHandle(token);
        match found {
            0 => Err(error),
            _ => Ok(buffer),
        }
    }
}

/// The integrity level of this process: the last part of the level's identifier.
#[allow(unsafe_code)]
fn own_integrity_level() -> io::Result<u32> {
    let buffer = own_token_information(TokenIntegrityLevel)?;
    // SAFETY: the buffer holds the structure of the class, with a pointer to an identifier in the
    // buffer. An identifier of a level has at least one part.
    unsafe {
        let label = buffer.as_ptr().cast::<TOKEN_MANDATORY_LABEL>();
        let sid = (*label).Label.Sid;
        let last = u32::from(*GetSidSubAuthorityCount(sid)).saturating_sub(1);
        Ok(*GetSidSubAuthority(sid, last))
    }
}

/// The security identifier of the user of this process, as text.
#[allow(unsafe_code)]
fn own_user() -> io::Result<String> {
    let buffer = own_token_information(TokenUser)?;
    let mut text: PWSTR = ptr::null_mut();
    // SAFETY: the buffer holds the structure of the class, with a pointer to an identifier in the
    // buffer. The call writes one pointer to `text`.
    let converted = unsafe {
        let user = buffer.as_ptr().cast::<TOKEN_USER>();
        ConvertSidToStringSidW((*user).User.Sid, &mut text)
    };
    if converted == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the text ends with a null character. The system has allocated it for this call, and
    // it is released once, after the last use.
    unsafe {
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        let user = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text.cast());
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_above_medium_gives_its_objects_a_level() {
        const OWNERS: &str = "D:P(A;;0x3;;;S-1-5-18)(A;;0x3;;;S-1-5-32-544)";
        for (user, level, text) in [
            (
                "S-1-5-18",
                0x4000,
                format!("{OWNERS}S:(ML;;NWNRNX;;;S-1-16-12288)"),
            ),
            (
                "S-1-5-21-7",
                0x3000,
                format!("{OWNERS}(A;;0x3;;;S-1-5-21-7)S:(ML;;NWNRNX;;;S-1-16-12288)"),
            ),
            (
                "S-1-5-21-7",
                MEDIUM,
                format!("{OWNERS}(A;;0x3;;;S-1-5-21-7)"),
            ),
            ("S-1-5-18", 0x1000, OWNERS.to_owned()),
        ] {
            assert_eq!(descriptor_text(3, user, level), text);
            OwnersOnly::parse(&text).unwrap();
        }
        OwnersOnly::new(3).unwrap();
    }
}
