use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn parse(text: &str) -> Result<NetArgs, String> {
    let words = ["perf", "net"].into_iter().chain(text.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    match cli.args.device {
        Device::Net(net) => Ok(net),
        Device::Blk(_) | Device::Nvme(_) => Err("another device".to_owned()),
    }
}

#[test]
fn defaults_measure_four_sizes_in_three_directions_in_about_a_minute() {
    let net = parse("").unwrap();
    let sizes = [PacketSize::Bytes(64), PacketSize::Bytes(512), PacketSize::Bytes(1518), PacketSize::Imix];
    assert_eq!(net.size, sizes);
    assert_eq!(net.direction, [Direction::To, Direction::From, Direction::Loop]);
    let total = net.duration * (net.size.len() * net.direction.len()) as u32;
    assert!((Duration::from_secs(50)..=Duration::from_secs(70)).contains(&total));
    assert_eq!((net.queue_pairs, net.ring_size, net.json, net.socket_path), (1, 256, None, None));
}

#[test]
fn lists_and_values_are_taken() {
    let net =
        parse("--size 60,imix --direction loop --queue-pairs 2 --ring-size 1024 --duration 500ms --json - --socket-path /s")
            .unwrap();
    assert_eq!(net.size, [PacketSize::Bytes(60), PacketSize::Imix]);
    assert_eq!(net.direction, [Direction::Loop]);
    assert_eq!((net.queue_pairs, net.ring_size, net.duration), (2, 1024, Duration::from_millis(500)));
    assert_eq!((net.json, net.socket_path), (Some("-".into()), Some("/s".into())));
}

#[test]
fn wrong_values_are_refused_with_what_would_be_right() {
    for (text, hint) in [
        ("--size 59", "60 to 9018"),
        ("--size 64,,512", "60 to 9018"),
        ("--direction up", "to, from, loop"),
        ("--queue-pairs 17", "1..=16"),
        ("--ring-size 100", "power of two"),
        ("--ring-size 65536", "power of two"),
        ("--duration 50ms", "at least 100ms"),
        ("--duration x", "500ms"),
        ("--burst 0", "1..=1024"),
        ("--ring round", "split, packed"),
        ("--mergeable yes", "on or off"),
        ("--pairs 3", "--against"),
        ("--pause", "--against"),
        ("--resolution 1", "--zero-loss"),
        ("--zero-loss --resolution 0", "0.01 to 50"),
        ("--zero-loss --max-rate 5", "1.5M"),
        ("--latency 1,2", "50k"),
        ("--zero-loss --latency", "cannot be used with"),
        ("--zero-loss --against /b", "cannot be used with"),
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(hint), "{text}: {message}");
    }
}

#[test]
fn shape_of_the_rings_is_taken_from_its_options() {
    let shape = |text| parse(text).unwrap().options(String::new()).unwrap().shape;
    assert_eq!(shape(""), Shape::plain(256));
    let odd = Shape { burst: 8, mergeable: Some(false), indirect: true, ..Shape::plain(64) };
    assert_eq!(shape("--burst 8 --mergeable off --indirect --ring-size 64"), odd);
    let packed = Shape { format: Format::Packed, in_order: true, ..Shape::plain(256) };
    assert_eq!(shape("--ring packed --in-order"), packed);
}

#[test]
fn others_to_compare_with_are_a_list_of_sockets() {
    let options = parse("--against /b /c --pairs 7 --pause").unwrap().options(String::new()).unwrap();
    let Mode::Against(against) = options.mode else { panic!("no comparison") };
    assert_eq!((against.sockets, against.pairs, against.pause), (vec!["/b".into(), "/c".into()], 7, true));
    assert!(matches!(parse("").unwrap().options(String::new()).unwrap().mode, Mode::Greatest));
}

#[test]
fn options_that_do_not_fit_together_are_refused_with_both() {
    for (text, hint) in [
        ("--against /b --pairs 100 --duration 1s", "100 turns of at least 100 ms"),
        ("--burst 128 --ring-size 64", "rings of 64"),
    ] {
        let message = parse(text).unwrap().options(String::new()).unwrap_err();
        assert!(message.contains(hint), "{text}: {message}");
    }
}

#[test]
fn search_and_latency_are_modes_without_the_direction_that_is_not_offered() {
    let options = |text| parse(text).unwrap().options(String::new());
    let search = options("--zero-loss --duration 2s --resolution 0.5 --max-rate 3M").unwrap();
    assert_eq!(search.directions, [Direction::To, Direction::Loop]);
    let Mode::ZeroLoss(how) = search.mode else { panic!("no search") };
    let trial = Duration::from_secs(2);
    assert_eq!(how, SearchOptions { trial, resolution: 0.005, highest: Some(3e6) });
    let loads = |text| match options(text).unwrap().mode {
        Mode::Latency(loads) => loads,
        _ => Vec::new(),
    };
    assert_eq!(loads("--latency"), [Load::One]);
    assert_eq!(loads("--latency one,50k --size 64"), [Load::One, Load::Rate(5e4)]);
    assert!(options("--latency --direction from").unwrap_err().contains("to and loop"));
}
