// Logits -> nails and masks, as nailcore/tryon does it: components, finger classes, angles, extents.
import Foundation

/// Below it the directions cancel out, and what is left is rounding.
private let minCoherence = 1e-6

public enum PostprocessError: Error, Equatable {
    case badLogits(String)
}

/// One image's logits, channels first, as CoreML gives them: (C, height, width), C = 2, 10, 2.
public struct Logits {
    public let height: Int
    public let width: Int
    public let fgbg: [Float]
    public let finger: [Float]
    public let direction: [Float]

    public init(height: Int, width: Int, fgbg: [Float], finger: [Float], direction: [Float]) throws {
        let cells = height * width
        let given = [("fgbg", fgbg, 2), ("finger", finger, 10), ("direction", direction, 2)]
        for (name, values, channels) in given {
            guard values.count == cells * channels else {
                throw PostprocessError.badLogits("\(name) holds \(values.count) values, not \(cells * channels)")
            }
            guard values.allSatisfy({ $0.isFinite }) else {
                throw PostprocessError.badLogits("\(name) holds NaN or infinite values")
            }
        }
        self.height = height
        self.width = width
        self.fgbg = fgbg
        self.finger = finger
        self.direction = direction
    }
}

public struct Point: Equatable {
    public let x: Double
    public let y: Double
}

/// One connected component of the nail mask; lengths and points are in logits cells.
public struct Nail: Equatable {
    public let area: Int
    public let left: Int
    public let top: Int
    public let width: Int
    public let height: Int
    public let centroid: Point
    public let finger: Int
    public let fingerScore: Double
    public let fingerChances: [Double]
    public let score: Double
    /// Image axes: 0 points right, 90 down; nil where the directions cancel out.
    public let angleDeg: Double?
    public let coherence: Double?
    public let base: Point?
    public let tip: Point?
}

/// 8-connectivity by union-find: 0 background, then 1... in raster order of each component's first cell.
public func labelComponents(_ mask: [Bool], height: Int, width: Int) -> (labels: [Int], count: Int) {
    var labels = [Int](repeating: 0, count: height * width)
    var parents = [0]
    func find(_ start: Int) -> Int {
        var root = start
        while parents[root] != root { root = parents[root] }
        var label = start
        while parents[label] != root {
            let next = parents[label]
            parents[label] = root
            label = next
        }
        return root
    }
    for y in 0..<height {
        for x in 0..<width {
            let cell = y * width + x
            guard mask[cell] else { continue }
            let above = y > 0 ? labels[cell - width] : 0
            let left = x > 0 ? labels[cell - 1] : 0
            let aboveLeft = y > 0 && x > 0 ? labels[cell - width - 1] : 0
            let aboveRight = y > 0 && x + 1 < width ? labels[cell - width + 1] : 0
            // `above` touches all three others; without it only `aboveRight` may join two components.
            var label = above != 0 ? above : (aboveLeft != 0 ? aboveLeft : left)
            if above == 0 && aboveRight != 0 {
                if label == 0 {
                    label = aboveRight
                } else {
                    let one = find(label)
                    let other = find(aboveRight)
                    label = min(one, other)  // the older one stays the root: it was met first
                    parents[max(one, other)] = label
                }
            }
            if label == 0 {
                label = parents.count
                parents.append(label)
            }
            labels[cell] = label
        }
    }
    // A root is the smallest label of its component, so roots appear in raster order.
    var ranks = [Int](repeating: 0, count: parents.count)
    var count = 0
    for label in 1..<max(parents.count, 1) {
        let root = find(label)
        if root == label {
            count += 1
            ranks[label] = count
        } else {
            ranks[label] = ranks[root]
        }
    }
    return (labels.map { ranks[$0] }, count)
}

private struct Blob {
    var cells: [Int] = []
    var sumX = 0
    var sumY = 0
    var left = Int.max
    var top = Int.max
    var right = -1
    var bottom = -1
    var score = 0.0
    var unitX = 0.0
    var unitY = 0.0
    var classes = [Double](repeating: 0, count: 10)
    /// Mean class softmax, 0..1.
    var chances: [Double] { classes.map { $0 / Double(cells.count) } }

    mutating func add(cell: Int, x: Int, y: Int) {
        cells.append(cell)
        sumX += x
        sumY += y
        left = min(left, x)
        right = max(right, x)
        top = min(top, y)
        bottom = max(bottom, y)
    }

    mutating func addDirection(dx: Double, dy: Double, score: Double) {
        self.score += score
        let length = (dx * dx + dy * dy).squareRoot()
        if length > 0 {  // the loss knows unit vectors alone: a prediction's length means nothing
            unitX += score * dx / length
            unitY += score * dy / length
        }
    }

    mutating func addSoftmax(_ logits: [Double]) {
        let largest = logits.max() ?? 0
        let powers = logits.map { exp($0 - largest) }
        let total = powers.reduce(0, +)
        for index in classes.indices { classes[index] += powers[index] / total }
    }
}

/// The nails of one image, in raster order of their first cell; components under `minArea` cells are dropped.
public func findNails(_ logits: Logits, minArea: Int) -> [Nail] {
    let cells = logits.height * logits.width
    // Argmax of background and nail; a tie is background.
    let mask = (0..<cells).map { logits.fgbg[cells + $0] > logits.fgbg[$0] }
    let (labels, count) = labelComponents(mask, height: logits.height, width: logits.width)
    var blobs = [Blob](repeating: Blob(), count: count)
    for cell in 0..<cells where labels[cell] != 0 {
        let index = labels[cell] - 1
        blobs[index].add(cell: cell, x: cell % logits.width, y: cell / logits.width)
        let margin = Double(logits.fgbg[cell]) - Double(logits.fgbg[cells + cell])
        let score = 1 / (1 + exp(margin))  // softmax of the nail class
        blobs[index].addDirection(
            dx: Double(logits.direction[cell]), dy: Double(logits.direction[cells + cell]), score: score)
        blobs[index].addSoftmax((0..<10).map { Double(logits.finger[$0 * cells + cell]) })
    }
    let kept = blobs.filter { $0.cells.count >= minArea }
    let names = nameFingers(kept.map { $0.chances })
    return zip(kept, names).map { finish($0, width: logits.width, finger: $1) }
}

/// As nailcore/tryon/naming.py: every nail a finger of its own, the likeliest way; one index per nail.
public func nameFingers(_ chances: [[Double]]) -> [Int] {
    let secondHandNats = 4.0
    let minChance = 1e-3
    let stepsPerNat = 1024.0  // whole scores: a tie is a tie in every language
    let fingers = 10
    let hand = fingers / 2
    if chances.count > fingers {
        return chances.map { row in
            row.indices.reduce(0) { row[$1] > row[$0] ? $1 : $0 }
        }
    }
    let scores = chances.map { $0.map { Int((log($0 + minChance) * stepsPerNat + 0.5).rounded(.down)) } }
    let both = assign(scores, columns: fingers)
    if chances.count > hand { return both.names }
    var best = both.sum - Int(secondHandNats * stepsPerNat)
    var names = both.names
    let right = assign(scores.map { Array($0[hand...]) }, columns: hand)
    let left = assign(scores.map { Array($0[..<hand]) }, columns: hand)
    if right.sum >= best {
        best = right.sum
        names = right.names.map { hand + $0 }
    }
    return left.sum >= best ? left.names : names
}

/// The largest sum with one score of each row and none two of a column. values[used]: the best that the remaining
/// rows can add when the columns `used` (bits) are taken; as many rows are named as bits are set.
private func assign(_ scores: [[Int]], columns: Int) -> (sum: Int, names: [Int]) {
    let sets = 1 << columns
    var values = [Int](repeating: 0, count: sets)
    var choices = [Int](repeating: 0, count: sets)
    for used in stride(from: sets - 1, through: 0, by: -1) where used.nonzeroBitCount < scores.count {
        let row = scores[used.nonzeroBitCount]
        var best: Int?
        for column in 0..<columns where used & (1 << column) == 0 {
            let sum = row[column] + values[used | (1 << column)]
            if best == nil || sum > best! {
                best = sum
                choices[used] = column
            }
        }
        values[used] = best ?? 0
    }
    var names: [Int] = []
    var used = 0
    for _ in scores {
        names.append(choices[used])
        used |= 1 << choices[used]
    }
    return (values[0], names)
}

private func finish(_ blob: Blob, width: Int, finger: Int) -> Nail {
    let area = Double(blob.cells.count)
    let centroid = Point(x: Double(blob.sumX) / area, y: Double(blob.sumY) / area)
    let length = (blob.unitX * blob.unitX + blob.unitY * blob.unitY).squareRoot()
    let directed = blob.score > 0 && length / blob.score >= minCoherence
    var angle: Double?
    var base: Point?
    var tip: Point?
    if directed {
        let x = blob.unitX / length
        let y = blob.unitY / length
        let degrees = atan2(y, x) * 180 / Double.pi
        angle = degrees <= -180 ? 180 : degrees
        let ends = findExtents(blob.cells, centroid, x, y, width)
        base = ends.base
        tip = ends.tip
    }
    return Nail(
        area: blob.cells.count, left: blob.left, top: blob.top, width: blob.right - blob.left + 1,
        height: blob.bottom - blob.top + 1, centroid: centroid, finger: finger,
        fingerScore: blob.chances[finger], fingerChances: blob.chances, score: blob.score / area, angleDeg: angle,
        coherence: directed ? min(length / blob.score, 1) : nil, base: base, tip: tip)
}

/// The points furthest against and along a direction, on the line through the centroid.
private func findExtents(
    _ cells: [Int], _ centroid: Point, _ x: Double, _ y: Double, _ width: Int
) -> (base: Point, tip: Point) {
    var low = Double.infinity
    var high = -Double.infinity
    for cell in cells {
        let along = (Double(cell % width) - centroid.x) * x + (Double(cell / width) - centroid.y) * y
        low = min(low, along)
        high = max(high, along)
    }
    let halfCell = (abs(x) + abs(y)) / 2  // a unit square's reach along the direction
    low -= halfCell
    high += halfCell
    return (
        Point(x: centroid.x + low * x, y: centroid.y + low * y),
        Point(x: centroid.x + high * x, y: centroid.y + high * y)
    )
}

/// The nail mask at the photo's own size, row by row. The logits are stretched bilinearly and the argmax
/// is taken last, so contours are smooth.
public func maskOnPhoto(_ logits: Logits, box: Letterbox, outputStride: Int) -> [Bool] {
    let cells = logits.height * logits.width
    let margin = (0..<cells).map { Double(logits.fgbg[cells + $0]) - Double(logits.fgbg[$0]) }
    let columns = planStretch(box.width, box.scaledWidth, box.left, logits.width, outputStride)
    let rows = planStretch(box.height, box.scaledHeight, box.top, logits.height, outputStride)
    var mask = [Bool](repeating: false, count: box.height * box.width)
    var row = [Double](repeating: 0, count: logits.width)
    for y in 0..<box.height {
        let (upper, lower, down) = rows[y]
        for x in 0..<logits.width {
            row[x] = margin[upper * logits.width + x] * (1 - down) + margin[lower * logits.width + x] * down
        }
        for x in 0..<box.width {
            let (left, right, across) = columns[x]
            mask[y * box.width + x] = row[left] * (1 - across) + row[right] * across > 0
        }
    }
    return mask
}

/// For each photo pixel of an axis: the cells before and after its centre, and the second one's weight.
private func planStretch(
    _ side: Int, _ scaled: Int, _ origin: Int, _ limit: Int, _ stride: Int
) -> [(Int, Int, Double)] {
    (0..<side).map { pixel in
        let onInput = (Double(pixel) + 0.5) * Double(scaled) / Double(side) + Double(origin)
        let place = onInput / Double(stride) - 0.5
        let first = Int(place.rounded(.down))
        let clamp = { (cell: Int) in max(0, min(limit - 1, cell)) }
        return (clamp(first), clamp(first + 1), place - Double(first))
    }
}
