//! The authority of a URI: `[ userinfo "@" ] host [ ":" port ]` (RFC 3986, section 3.2).
//!
//! | where | userinfo | host | port |
//! |---|---|---|---|
//! | Host field (RFC 9110, section 7.2) | no | may be empty | may be left out or empty |
//! | absolute target (RFC 9110, section 4.2) | allowed, never logged | required | may be left out or empty |
//! | target of CONNECT (RFC 9110, section 9.3.6) | no | required | required |
//!
//! A host is a name, an IPv4 address, or an IP literal in brackets. A port is a decimal number up
//! to 65535: servers that kept the low 16 bits of a larger one would disagree on where it leads.

use std::net::Ipv6Addr;

/// Whether `value` is a valid Host field.
pub(super) fn is_host_field(value: &[u8]) -> bool {
    split_host(value).is_some_and(|(_, port)| is_port(port))
}

/// Whether `value` is a valid authority of an absolute target.
pub(super) fn is_absolute_authority(value: &[u8]) -> bool {
    let host_start = value.iter().rposition(|&byte| byte == b'@');
    let value = &value[host_start.map_or(0, |at| at + 1)..];
    split_host(value).is_some_and(|(host, port)| !host.is_empty() && is_port(port))
}

/// Whether `value` is a valid target of CONNECT.
pub(super) fn is_tunnel_authority(value: &[u8]) -> bool {
    let is_given = |port: Option<&[u8]>| port.is_some_and(|port| !port.is_empty());
    split_host(value)
        .is_some_and(|(host, port)| !host.is_empty() && is_given(port) && is_port(port))
}

/// The host, and the port behind it if there is a colon. `None` if the host is malformed.
fn split_host(value: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let host_end = match value.strip_prefix(b"[") {
        Some(rest) => {
            let literal = rest.split(|&byte| byte == b']').next()?;
            is_ip_literal(literal).then_some(literal.len() + 2)?
        }
        None => value
            .iter()
            .position(|&byte| !is_name_byte(byte))
            .unwrap_or(value.len()),
    };
    match value.split_at_checked(host_end)? {
        (host, []) => Some((host, None)),
        (host, [b':', port @ ..]) => Some((host, Some(port))),
        _ => None,
    }
}

fn is_port(port: Option<&[u8]>) -> bool {
    let digits = port.unwrap_or_default();
    let text = std::str::from_utf8(digits).unwrap_or_default();
    digits.is_empty() || digits.iter().all(u8::is_ascii_digit) && text.parse::<u16>().is_ok()
}

/// Whether `literal` may be in the brackets of a host: an IPv6 address, or an address of a future
/// version, `"v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" )`.
fn is_ip_literal(literal: &[u8]) -> bool {
    let Some(future) = literal.strip_prefix(b"v").or(literal.strip_prefix(b"V")) else {
        let text = std::str::from_utf8(literal).unwrap_or_default();
        return text.parse::<Ipv6Addr>().is_ok();
    };
    let mut parts = future.splitn(2, |&byte| byte == b'.');
    let (version, rest) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let is_rest = |byte: &u8| *byte == b':' || *byte != b'%' && is_name_byte(*byte);
    !version.is_empty()
        && version.iter().all(u8::is_ascii_hexdigit)
        && !rest.is_empty()
        && rest.iter().all(is_rest)
}

/// Whether a registered name or an IPv4 address may contain `byte` (RFC 3986, section 3.2.2).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each text: valid as a Host field, as the authority of an absolute target, and as that of
    /// a tunnel.
    const CASES: &[(&str, bool, bool, bool)] = &[
        ("a:80", true, true, true),
        ("a:00080", true, true, true),
        ("a:65535", true, true, true),
        ("a.b-c_d~e%41:1", true, true, true),
        ("1.2.3.4:5", true, true, true),
        ("[::1]:80", true, true, true),
        ("[::ffff:1.2.3.4]:80", true, true, true),
        ("[v1F.a:b]:80", true, true, true),
        ("a", true, true, false),
        ("a:", true, true, false),
        ("[::1]", true, true, false),
        ("[::1]:", true, true, false),
        ("", true, false, false),
        (":80", true, false, false),
        (":", true, false, false),
        ("u:p@a:80", false, true, false),
        ("@a", false, true, false),
        ("u@", false, false, false),
        ("u:p@:80", false, false, false),
        ("a:65536", false, false, false),
        ("a:99999", false, false, false),
        ("a:4294967376", false, false, false),
        ("a:b", false, false, false),
        ("a:8 0", false, false, false),
        ("a:+80", false, false, false),
        ("a:-1", false, false, false),
        ("a:1:2", false, false, false),
        ("::1", false, false, false),
        ("[::1", false, false, false),
        ("[]", false, false, false),
        ("[::1]x", false, false, false),
        ("[::1]80", false, false, false),
        ("[::1]]:80", false, false, false),
        ("[[::1]]", false, false, false),
        ("[:::1]", false, false, false),
        ("[1.2.3.4]", false, false, false),
        ("[::g]", false, false, false),
        ("[::1%25eth0]", false, false, false),
        ("[v1]", false, false, false),
        ("[v.a]", false, false, false),
        ("[v1.%41]", false, false, false),
        ("a b", false, false, false),
        ("a, b", false, false, false),
        ("a/b", false, false, false),
        ("\u{e9}", false, false, false),
    ];

    #[test]
    fn each_place_has_its_form_of_an_authority() {
        for (text, host_field, absolute, tunnel) in CASES {
            let bytes = text.as_bytes();
            assert_eq!(is_host_field(bytes), *host_field, "Host: {text:?}");
            assert_eq!(is_absolute_authority(bytes), *absolute, "http://{text}/");
            assert_eq!(is_tunnel_authority(bytes), *tunnel, "CONNECT {text}");
        }
    }
}
