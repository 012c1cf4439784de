//! How many bytes the values of rows have, however much room their batch stands in.

use std::ops::Range;

use arrow::array::{ArrayRef, AsArray, OffsetSizeTrait};
use arrow::datatypes::DataType;

/// Bytes of a row's values.
pub fn row_bytes(columns: &[ArrayRef], row: usize) -> usize {
    columns.iter().map(|column| value_bytes(column, row)).sum()
}

/// Bytes of a value; a guess for rare types without offsets.
fn value_bytes(column: &ArrayRef, row: usize) -> usize {
    let all = |values: &ArrayRef, rows: Range<usize>| -> usize {
        match values.data_type().primitive_width() {
            Some(width) => width * rows.len(),
            None => rows.map(|row| value_bytes(values, row)).sum(),
        }
    };
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value_length(row) as usize,
        DataType::LargeUtf8 => column.as_string::<i64>().value_length(row) as usize,
        // The low half of a view is a length.
        DataType::Utf8View => column.as_string_view().views()[row] as u32 as usize,
        DataType::BinaryView => column.as_binary_view().views()[row] as u32 as usize,
        DataType::Binary => column.as_binary::<i32>().value_length(row) as usize,
        DataType::LargeBinary => column.as_binary::<i64>().value_length(row) as usize,
        DataType::FixedSizeBinary(width) => *width as usize,
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            all(list.values(), span(list.value_offsets(), row))
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            all(list.values(), span(list.value_offsets(), row))
        }
        DataType::FixedSizeList(_, length) => {
            let list = column.as_fixed_size_list();
            let start = list.value_offset(row) as usize;
            all(list.values(), start..start + *length as usize)
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let rows = span(map.value_offsets(), row);
            map.entries().columns().iter().map(|values| all(values, rows.clone())).sum()
        }
        DataType::Struct(_) => row_bytes(column.as_struct().columns(), row),
        kind => kind.primitive_width().unwrap_or(16),
    }
}

/// Where the items of a list's row are.
fn span<O: OffsetSizeTrait>(offsets: &[O], row: usize) -> Range<usize> {
    offsets[row].as_usize()..offsets[row + 1].as_usize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use arrow::datatypes::Field;
    use std::sync::Arc;

    #[test]
    fn nested_values_count() {
        use arrow::array::{BinaryArray, ListArray, StructArray};
        use arrow::buffer::OffsetBuffer;
        let role: ArrayRef = Arc::new(StringArray::from(vec!["user", "ai", "user"]));
        let said: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"hello", b"", b"!"]));
        let fields = [("role", role), ("said", said)].map(|(name, values)| {
            (Arc::new(Field::new(name, values.data_type().clone(), false)), values)
        });
        let turn: ArrayRef = Arc::new(StructArray::from(fields.to_vec()));
        let item = Arc::new(Field::new("item", turn.data_type().clone(), false));
        let offsets = OffsetBuffer::from_lengths([2, 0, 1]);
        let talks: ArrayRef = Arc::new(ListArray::new(item, offsets, turn, None));
        let numbers: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1, 2, 3]));
        let bytes = [4 + 5 + 2 + 4, 4, 4 + 1 + 4];
        assert_eq!([0, 1, 2].map(|row| row_bytes(&[talks.clone(), numbers.clone()], row)), bytes);
        assert_eq!(row_bytes(&[talks.slice(2, 1)], 0), 5);
    }
}
