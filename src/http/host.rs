//! The syntax of a Host field's value: `uri-host [ ":" port ]` (RFC 9110, section 7.2).

/// Whether `value` is a host with an optional port. Both may be empty.
pub(super) fn is_host(value: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let (literal, rest) = (&literal[..end], &literal[end + 1..]);
        let is_literal = |byte: &u8| byte.is_ascii_alphanumeric() || b":.-_~".contains(byte);
        return !literal.is_empty()
            && literal.iter().all(is_literal)
            && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port));
    }
    let name_end = value.iter().position(|&byte| !is_name_byte(byte));
    match &value[name_end.unwrap_or(value.len())..] {
        [b':', port @ ..] => is_port(port),
        rest => rest.is_empty(),
    }
}

/// Whether a registered name or an IPv4 address may contain `byte` (RFC 3986, section 3.2.2).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in ["", "a", "a:80", "a.b-c:", "[::1]", "[::1]:80", "1.2.3.4:5"] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "a b", "a, b", "a/b", "u@a", "a:b", "a:1:2", "[::1", "[]", "[::1]x", "\u{e9}",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
    }
}
