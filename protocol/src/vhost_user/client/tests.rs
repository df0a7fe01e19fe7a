use std::fs::File;
use std::thread::{self, JoinHandle};

use super::*;
use crate::vhost_user::{FrontendRequest, Header};

type Asked = Vec<(FrontendMessage, bool, usize)>;

/// How a scripted back-end answers the next request.
type Answer = Box<dyn FnMut(&Header, &FrontendMessage) -> Option<Vec<u8>> + Send>;

/// A client, and a back-end on a thread that answers it until it hangs up and then tells what it was asked.
fn with_backend(mut answer: Answer) -> (Client, JoinHandle<Asked>) {
    let (front, back) = UnixStream::pair().unwrap();
    let backend = thread::spawn(move || {
        let mut connection = Connection::<FrontendMessage>::new(back);
        let mut asked = Asked::new();
        loop {
            match connection.receive().unwrap() {
                Received::Message(Frame { header, message, fds }) => {
                    if let Some(bytes) = answer(&header, &message) {
                        connection.send(&bytes, &[]).unwrap();
                    }
                    asked.push((message, header.needs_reply(), fds.len()));
                }
                Received::Rejected { error, .. } => panic!("the client sent what is malformed: {error}"),
                Received::WouldBlock => {
                    poll(&mut [PollFd::new(&connection, PollFlags::IN)], None).unwrap();
                }
                Received::Closed => return asked,
            }
        }
    });
    (Client::new(front, Duration::from_secs(10)), backend)
}

/// Answers what has to be answered, every acknowledgement with `value`.
fn obliging(value: u64) -> Answer {
    Box::new(move |header, message| {
        let reply = match message {
            FrontendMessage::GetFeatures => FrontendReply::GetFeatures(1 << 32),
            FrontendMessage::GetProtocolFeatures => {
                FrontendReply::GetProtocolFeatures(ProtocolFeatures::all())
            }
            FrontendMessage::GetQueueNum => FrontendReply::GetQueueNum(4),
            FrontendMessage::GetMaxMemSlots => FrontendReply::GetMaxMemSlots(509),
            FrontendMessage::GetStatus => FrontendReply::GetStatus(15),
            FrontendMessage::GetVringBase(state) => {
                FrontendReply::GetVringBase(VringState { num: 77, ..*state })
            }
            FrontendMessage::GetConfig(piece) => FrontendReply::GetConfig(Some(piece.clone())),
            _ if header.needs_reply() => FrontendReply::ack(header, value),
            _ => return None,
        };
        Some(reply.to_bytes())
    })
}

#[test]
fn client_asks_for_acknowledgements_once_they_are_negotiated() {
    let (mut client, backend) = with_backend(obliging(0));
    client.set_owner().unwrap();
    assert_eq!(client.features().unwrap(), 1 << 32);
    assert!(client.protocol_features().unwrap().contains(ProtocolFeatures::REPLY_ACK));
    client.set_protocol_features(ProtocolFeatures::REPLY_ACK | ProtocolFeatures::MQ).unwrap();
    client.set_features(1 << 32).unwrap();
    drop(client);
    let asked: Vec<_> = backend.join().unwrap().into_iter().map(|(m, ack, _)| (m.request(), ack)).collect();
    let expected = [
        (FrontendRequest::SetOwner, false),
        (FrontendRequest::GetFeatures, false),
        (FrontendRequest::GetProtocolFeatures, false),
        (FrontendRequest::SetProtocolFeatures, false),
        (FrontendRequest::SetFeatures, true),
    ];
    assert_eq!(asked, expected);
}

#[test]
fn each_convenience_sends_its_message_with_its_descriptors() {
    let (mut client, backend) = with_backend(obliging(0));
    let file = File::open("/dev/null").unwrap();
    let region = MemoryRegion { guest_addr: 1, size: 2, user_addr: 3, mmap_offset: 4 };
    let piece = Config::new(0, 0, vec![0; 6]).unwrap();
    client.set_protocol_features(ProtocolFeatures::REPLY_ACK).unwrap();
    client.set_mem_table(&[(region, file.as_fd()), (region, file.as_fd())]).unwrap();
    client.add_mem_region(region, file.as_fd()).unwrap();
    client.remove_mem_region(region).unwrap();
    client.set_vring_num(0, 256).unwrap();
    client.set_vring_base(0, 0).unwrap();
    client.set_vring_addr(VringAddr::default()).unwrap();
    client.set_vring_kick(0, Some(file.as_fd())).unwrap();
    client.set_vring_call(0, None).unwrap();
    client.set_vring_err(0, Some(file.as_fd())).unwrap();
    client.set_vring_enable(0, true).unwrap();
    client.set_backend_req_fd(file.as_fd()).unwrap();
    client.set_status(15).unwrap();
    client.set_config(piece.clone()).unwrap();
    client.set_mtu(1500).unwrap();
    client.reset_device().unwrap();
    assert_eq!(client.queue_num().unwrap(), 4);
    assert_eq!(client.max_mem_slots().unwrap(), 509);
    assert_eq!(client.status().unwrap(), 15);
    assert_eq!(client.config(piece.clone()).unwrap(), Some(piece));
    assert_eq!(client.vring_base(1).unwrap(), VringState { index: 1, num: 77 });
    drop(client);
    let fds: Vec<_> = backend.join().unwrap().into_iter().map(|(_, _, fds)| fds).collect();
    assert_eq!(fds, [0, 2, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn refusal_is_an_error_that_names_the_request() {
    let (mut client, _backend) = with_backend(obliging(5));
    client.set_protocol_features(ProtocolFeatures::REPLY_ACK).unwrap();
    let error = client.set_vring_num(0, 3).unwrap_err();
    assert!(matches!(error, ClientError::Refused { name: "SET_VRING_NUM", value: 5 }), "{error}");
}

#[test]
fn silence_is_an_error_after_the_time_out() {
    let (front, _back) = UnixStream::pair().unwrap();
    let error = Client::new(front, Duration::from_millis(20)).features().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { name: "GET_FEATURES", .. }), "{error}");
}

#[test]
fn full_socket_is_an_error_after_the_time_out() {
    let (front, _back) = UnixStream::pair().unwrap();
    let mut client = Client::new(front, Duration::from_millis(1));
    let error = loop {
        if let Err(error) = client.set_owner() {
            break error;
        }
    };
    assert!(matches!(error, ClientError::TimedOut { name: "SET_OWNER", .. }), "{error}");
}

#[test]
fn hang_up_is_an_error_that_names_the_request() {
    let (front, back) = UnixStream::pair().unwrap();
    drop(back);
    let mut client = Client::new(front, Duration::from_secs(10));
    let error = client.features().unwrap_err();
    assert!(matches!(error, ClientError::Send(_) | ClientError::Closed { .. }), "{error}");
}

#[test]
fn reply_to_another_request_is_not_taken_for_the_awaited_one() {
    let (mut client, _backend) =
        with_backend(Box::new(|_, _| Some(FrontendReply::GetQueueNum(1).to_bytes())));
    let error = client.features().unwrap_err();
    assert!(matches!(error, ClientError::Unexpected { name: "GET_FEATURES", .. }), "{error}");
}

#[test]
fn malformed_reply_is_an_error_and_the_next_one_is_read() {
    let mut first = true;
    let (mut client, _backend) = with_backend(Box::new(move |_, _| {
        let mut bytes = FrontendReply::GetFeatures(9).to_bytes();
        if std::mem::take(&mut first) {
            bytes.truncate(bytes.len() - 4);
            bytes[8] = 4;
        }
        Some(bytes)
    }));
    let error = client.features().unwrap_err();
    assert!(matches!(error, ClientError::Malformed { name: "GET_FEATURES", .. }), "{error}");
    assert_eq!(client.features().unwrap(), 9);
}

#[test]
fn nobody_listening_is_an_error_that_names_the_path() {
    let error = Client::connect("/nonexistent/net0.sock", Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/net0.sock"), "{error}");
}
