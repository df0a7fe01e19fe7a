//! Where guest memory is: IOVA ranges, backing files, windows, guest slices.
