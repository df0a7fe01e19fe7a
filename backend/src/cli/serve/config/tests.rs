use super::*;

fn errors(text: &str) -> Vec<String> {
    parse(text, "vms.toml", None).expect_err("it is wrong")
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let text = r#"
[workers]
cpus = [1, 0]
mode = "busy"

[[net]]
name = "vm1"
socket-path = "/run/vm1.sock"
socket-mode = "0660"
link = "pktgen,size=64"
queue-pairs = 4
mac = "52:54:00:12:34:56"
mtu = 9000
worker = [0, 1]
prefault = true
ring-reset = true

[[net]]
name = "vm2"
connect = "vm2.sock"
worker = 1

[[blk]]
name = "disk"
socket-path = "/run/disk.sock"
store = "file=/srv/disk.img,direct=on"
queues = 2
read-only = true
serial = "D-1"
worker = 0
"#;
    let config = parse(text, "vms.toml", None).unwrap();
    assert_eq!((config.workers, config.mode), (vec![Some(1), Some(0)], Mode::Busy));
    let [one, two, three] = &config.plans[..] else { panic!("three devices") };
    assert_eq!(one.door, Door::Listen { path: "/run/vm1.sock".into(), mode: Some(0o660) });
    let net = NetConfig {
        name: "vm1".into(),
        queue_pairs: 4,
        mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        mtu: Some(9000),
        link: LinkKind::Pktgen { size: 64 },
    };
    assert!(one.sessions.prefault && !two.sessions.prefault);
    assert!(one.sessions.ring_reset && !two.sessions.ring_reset);
    assert_eq!((&one.kind, &one.workers), (&Kind::Net(net), &vec![0, 1]));
    assert_eq!((&two.door, &two.workers), (&Door::Dial { path: "vm2.sock".into() }, &vec![1]));
    let blk = BlkConfig {
        name: "disk".into(),
        store: "file=/srv/disk.img,direct=on".parse().unwrap(),
        queues: 2,
        read_only: true,
        serial: Some("D-1".into()),
    };
    assert_eq!((&three.kind, &three.workers), (&Kind::Blk(blk), &vec![0]));
}

#[test]
fn two_block_devices_do_not_write_one_file() {
    let two = |options: &str| {
        format!(
            "[[blk]]\nname = \"a\"\nconnect = \"a.sock\"\nstore = \"file=/srv/x{options}\"\n\
             [[blk]]\nname = \"b\"\nconnect = \"b.sock\"\nstore = \"file=/srv/./x{options}\"\n"
        )
    };
    let found = errors(&two(""));
    assert!(found[0].starts_with("vms.toml:8: ") && found[0].contains("line 4"), "{found:?}");
    assert!(parse(&two(",ro=on"), "vms.toml", None).is_ok());
}

#[test]
fn block_device_needs_a_store_that_can_be() {
    let found = errors("[[blk]]\nname = \"a\"\nconnect = \"a.sock\"\nstore = \"disk\"\n");
    assert!(found[0].starts_with("vms.toml:4: no store is called \"disk\""), "{found:?}");
    assert!(errors("[[blk]]\nname = \"a\"\nconnect = \"a.sock\"\n")[0].contains("`store`"));
    let found = errors("[[blk]]\nname = \"a\"\nconnect = \"a.sock\"\nstore = \"null,size=1M\"\nqueues = 0\n");
    assert!(found[0].starts_with("vms.toml:2: ") && found[0].contains("1 to 256"), "{found:?}");
}

#[test]
fn empty_file_is_no_devices_and_one_worker() {
    let config = parse("", "vms.toml", None).unwrap();
    assert_eq!((config.plans.len(), config.workers.len(), config.mode), (0, 1, Mode::Adaptive));
    assert_eq!(parse("[workers]\ncount = 3", "vms.toml", None).unwrap().workers, [None; 3]);
}

#[test]
fn unknown_key_is_an_error_with_its_line_and_the_keys_there_are() {
    let found = errors("[[net]]\nname = \"a\"\nsokcet-path = \"a.sock\"\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("vms.toml:3: unknown field `sokcet-path`"), "{found:?}");
    assert!(found[0].contains("`socket-path`"), "{found:?}");
    assert!(errors("[worker]\n")[0].starts_with("vms.toml:1: "));
    assert!(errors("[[net]]\nname = 7\n")[0].starts_with("vms.toml:2: "));
    assert!(errors("[[net]\n")[0].starts_with("vms.toml:1: "));
}

#[test]
fn all_wrong_values_are_told_at_once_each_with_its_line() {
    let found = errors(
        r#"[workers]
mode = "lazy"
cpus = [0, 0]
[[net]]
name = "a"
socket-path = "a.sock"
socket-mode = "999"
link = "nowhere"
mac = "x"
worker = 9
[[net]]
name = "b"
[[net]]
name = "c"
socket-path = "c.sock"
connect = "d.sock"
[[net]]
name = "e"
connect = "e.sock"
socket-mode = "0600"
[[net]]
name = ""
connect = "f.sock"
mtu = 60
[[net]]
name = "g"
connect = ""
"#,
    );
    let lines: Vec<&str> = found.iter().map(|error| error.split(": ").next().unwrap()).collect();
    let expected = [2, 3, 7, 8, 9, 10, 12, 16, 20, 22, 22, 27].map(|line| format!("vms.toml:{line}"));
    assert_eq!(lines, expected, "{found:#?}");
}

#[test]
fn two_devices_have_neither_a_name_nor_a_socket_in_common() {
    let found = errors(
        "[[net]]\nname = \"a\"\nsocket-path = \"/run/a.sock\"\n\
         [[net]]\nname = \"a\"\nsocket-path = \"b.sock\"\n\
         [[net]]\nname = \"c\"\nconnect = \"/run/./a.sock\"\n",
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("vms.toml:5: ") && found[0].contains("line 2"), "{found:?}");
    assert!(found[1].starts_with("vms.toml:9: ") && found[1].contains("line 3"), "{found:?}");
}

#[test]
fn workers_that_run_already_are_those_a_device_can_be_put_on() {
    let text = "[workers]\ncount = 4\n[[net]]\nname = \"a\"\nconnect = \"a.sock\"\nworker = 3\n";
    assert!(parse(text, "vms.toml", None).is_ok());
    let found = parse(text, "vms.toml", Some(2)).unwrap_err();
    assert!(found[0].starts_with("vms.toml:6: "), "{found:?}");
}
