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
    let Device::Net(net) = cli.args.device;
    Ok(net)
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
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(hint), "{text}: {message}");
    }
}
