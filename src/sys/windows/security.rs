//! Windows: who may open a named object.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER,
    TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};
use windows_sys::core::PWSTR;

/// A security descriptor that lets in the user of this process, administrators and the system.
#[derive(Debug)]
pub(in crate::sys) struct OwnersOnly(PSECURITY_DESCRIPTOR);

impl OwnersOnly {
    /// `access` is the access mask that they get. No entry is inherited from elsewhere.
    #[allow(unsafe_code)]
    pub(in crate::sys) fn new(access: u32) -> io::Result<Self> {
        const SYSTEM: &str = "S-1-5-18";
        const ADMINISTRATORS: &str = "S-1-5-32-544";
        let user = own_user()?;
        let mut sids = vec![SYSTEM, ADMINISTRATORS];
        if !sids.contains(&&*user) {
            sids.push(&user);
        }
        let entries = sids.iter().map(|sid| format!("(A;;{access:#x};;;{sid})"));
        let text = format!("D:P{}", entries.collect::<String>());
        let text = super::wide(&text);
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

/// The security identifier of the user of this process, as text.
#[allow(unsafe_code)]
fn own_user() -> io::Result<String> {
    let mut token: HANDLE = ptr::null_mut();
    // Aligned for a TOKEN_USER, and longer than one with the longest identifier.
    let mut buffer = [0_u64; 32];
    let mut length = 0;
    let mut text: PWSTR = ptr::null_mut();
    // SAFETY: the pointers are to live values, and the length is that of the buffer. The token is
    // closed once, and the buffer holds a TOKEN_USER if the second call has succeeded, with a
    // pointer into the buffer.
    let converted = unsafe {
        if OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) == 0 {
            return Err(io::Error::last_os_error());
        }
        let size = size_of_val(&buffer) as u32;
        let into = buffer.as_mut_ptr().cast();
        let found = GetTokenInformation(token, TokenUser, into, size, &mut length);
        let error = io::Error::last_os_error();
        CloseHandle(token);
        if found == 0 {
            return Err(error);
        }
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
