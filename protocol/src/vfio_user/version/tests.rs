use super::*;

fn parse(text: &str) -> Result<Capabilities, Problem> {
    Version::decode(&[&[0, 0, 0, 0], text.as_bytes()].concat()).map(|version| version.capabilities)
}

fn with(members: &str) -> Result<Capabilities, Problem> {
    parse(&format!(r#"{{"capabilities":{{{members}}}}}"#))
}

#[test]
fn what_is_not_said_has_the_values_of_the_specification() {
    let expected = Capabilities {
        max_msg_fds: 1,
        max_data_xfer_size: 1_048_576,
        max_dma_maps: 65535,
        pgsizes: 4096,
        write_multiple: false,
        twin_socket: None,
        migration: None,
    };
    for text in ["", "\0", " \n\0", "{}", "{}\0", r#"{"capabilities":{}}"#, r#"{"other":[1]}"#] {
        assert_eq!(parse(text).as_ref(), Ok(&expected), "{text:?}");
    }
}

#[test]
fn text_ends_at_its_nul_or_with_the_message() {
    let expected = Ok(Capabilities { max_msg_fds: 3, ..Capabilities::default() });
    for tail in ["", "\0", "\0\0\0", "\0{garbage"] {
        let text = format!(r#"{{"capabilities":{{"max_msg_fds":3}}}}{tail}"#);
        assert_eq!(parse(&text), expected, "{text:?}");
    }
}

#[test]
fn unknown_keys_are_ignored_however_odd() {
    let odd = r#""max_msg_fds":2,"later":{"a":[null,{"b":1.5e300}]},"":"","MAX_MSG_FDS":"x""#;
    assert_eq!(with(odd), Ok(Capabilities { max_msg_fds: 2, ..Capabilities::default() }));
}

#[test]
fn values_of_another_kind_are_refused_by_their_key() {
    let wrongs = [
        (r#""max_msg_fds":"8""#, "max_msg_fds"),
        (r#""max_msg_fds":-1"#, "max_msg_fds"),
        (r#""max_msg_fds":1.5"#, "max_msg_fds"),
        (r#""max_dma_maps":99999999999999999999999999"#, "max_dma_maps"),
        (r#""max_dma_maps":null"#, "max_dma_maps"),
        (r#""max_data_xfer_size":0"#, "max_data_xfer_size"),
        (r#""max_data_xfer_size":[1]"#, "max_data_xfer_size"),
        (r#""pgsizes":0"#, "pgsizes"),
        (r#""pgsizes":true"#, "pgsizes"),
        (r#""write_multiple":1"#, "write_multiple"),
        (r#""twin_socket":true"#, "twin_socket"),
        (r#""twin_socket":{"supported":"yes"}"#, "supported"),
        (r#""twin_socket":{"fd_index":-3}"#, "fd_index"),
        (r#""migration":4096"#, "migration"),
        (r#""migration":{"pgsize":0}"#, "pgsize"),
    ];
    for (members, expected) in wrongs {
        match with(members) {
            Err(Problem::Capability { key, .. }) => assert_eq!(key, expected, "{members}"),
            other => panic!("{members}: {other:?}"),
        }
    }
    for text in ["[]", "1", "null", r#"{"capabilities":null}"#, r#"{"capabilities":[]}"#] {
        assert!(matches!(parse(text), Err(Problem::Capability { .. })), "{text}");
    }
}

#[test]
fn text_that_is_not_json_is_refused_where_it_goes_wrong() {
    for text in ["{", "capabilities", r#"{"capabilities":{}"#, "{}{}", "{\"a\":\u{1}}", "\u{feff}{}"] {
        assert!(matches!(parse(text), Err(Problem::NotJson { .. })), "{text:?}");
    }
    assert_eq!(parse("{} x"), Err(Problem::NotJson { column: 4 }));
    let not_utf8 = [0, 0, 0, 0, b'{', b'"', 0xff, b'"', b':', b'1', b'}'];
    assert!(matches!(Version::decode(&not_utf8), Err(Problem::NotJson { .. })));
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    for open in ["[", r#"{"a":"#] {
        let text = open.repeat(MAX_VERSION_DATA / open.len());
        assert!(matches!(parse(&text), Err(Problem::NotJson { .. })));
    }
}

#[test]
fn limits_beyond_32_bits_are_the_greatest_of_32_bits() {
    let generous =
        format!(r#""max_msg_fds":4294967296,"max_data_xfer_size":{},"max_dma_maps":4294967295"#, u64::MAX);
    let expected = Capabilities {
        max_msg_fds: u32::MAX,
        max_data_xfer_size: u32::MAX,
        max_dma_maps: u32::MAX,
        ..Capabilities::default()
    };
    assert_eq!(with(&generous), Ok(expected));
}

#[test]
fn second_socket_needs_the_descriptor_it_points_at() {
    let fds = |members: &str| Version { capabilities: with(members).unwrap(), ..Version::default() }.fds();
    assert_eq!(fds(""), FdRule::NONE);
    assert_eq!(fds(r#""twin_socket":{}"#), FdRule::NONE);
    assert_eq!(fds(r#""twin_socket":{"supported":true}"#), FdRule::NONE);
    assert_eq!(fds(r#""twin_socket":{"supported":true,"fd_index":0}"#), FdRule::Between(1, MAX_FDS));
    let far = fds(r#""twin_socket":{"supported":true,"fd_index":4294967295}"#);
    assert!((0..=MAX_FDS).all(|got| !far.admits(got)));
}

#[test]
fn capabilities_survive_the_wire() {
    let twins = [None, Some(TwinSocket::default()), Some(TwinSocket { supported: true, fd_index: Some(7) })];
    for twin_socket in twins {
        for (write_multiple, migration) in
            [(false, None), (true, Some(Migration { pgsize: 1, max_bitmap_size: 0 }))]
        {
            let capabilities = Capabilities {
                max_msg_fds: 0,
                max_data_xfer_size: 1,
                max_dma_maps: u32::MAX,
                pgsizes: u64::MAX,
                write_multiple,
                twin_socket,
                migration,
            };
            let version = Version { major: 1, minor: 2, capabilities };
            let mut body = Vec::new();
            version.encode(&mut body);
            assert_eq!(body.last(), Some(&0));
            assert_eq!(Version::decode(&body), Ok(version));
        }
    }
}
