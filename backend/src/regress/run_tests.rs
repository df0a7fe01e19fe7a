use super::*;

#[test]
fn rounds_are_shared_out_and_repeat() {
    let run = Run::new(100, 7);
    assert_eq!((run.rounds(1).count(), run.rounds(30).count(), run.rounds(1000).count()), (100, 3, 1));
    let numbers = |run: &Run| run.rounds(10).map(|mut random| random.below(1000)).collect::<Vec<_>>();
    assert_eq!(numbers(&run), numbers(&Run::new(100, 7)));
    assert_ne!(numbers(&run), numbers(&Run::new(100, 8)));
}
