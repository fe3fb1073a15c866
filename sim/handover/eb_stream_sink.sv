// Compares the beats of an AXI4-Stream with those of a file, for benches, and ends the simulation at the first that
// differs. A line of the file: a byte with tlast in its lowest bit and tuser above it, then tdata; behind the last one
// the first one follows again.
//
// ``beat`` is what of them the port has, side bits on top. ``tready`` is 1 in random cycles while ``enable`` is, of
// 256 in PAUSES it is not, whatever is offered. More than ``due`` beats are too many. ``cycle`` is told with what differs.

module eb_stream_sink #(
    parameter BITS = 65,
    parameter LINE_BITS = 72,
    parameter BEATS = 1,
    parameter BEATS_PER_TOKEN = 0,  // 0: a token has no number of them
    parameter FILE = "outputs.hex",
    parameter NAME = "output",
    parameter PARTS = "last and data"
) (
    input  wire            aclk,
    input  wire            aresetn,
    input  wire [7:0]      pauses,
    input  wire [31:0]     seed,
    input  wire            enable,
    input  wire [31:0]     due,
    input  wire [31:0]     cycle,
    output reg  [31:0]     received,
    input  wire [BITS-1:0] beat,
    input  wire            tvalid,
    output wire            tready
);
    reg [LINE_BITS-1:0] golden [0:BEATS-1];
    initial $readmemh(FILE, golden);

    wire go;
    eb_pauses random(.aclk(aclk), .aresetn(aresetn), .pauses(pauses), .seed(seed), .go(go));

    reg ready = 0;
    reg held = 0;
    reg [BITS-1:0] held_beat;
    wire [31:0] place = received % BEATS;
    wire [BITS-1:0] expected = golden[place][BITS-1:0];
    initial received = 0;
    assign tready = ready;

    always @(posedge aclk)
        if (aresetn) begin
            ready <= enable && go;
            if ((^tvalid) === 1'bx) begin
                $display("FAIL: %0s: tvalid is unknown in cycle %0d", NAME, cycle);
                $fatal(1);
            end
            if (held && (!tvalid || beat !== held_beat)) begin
                $display("FAIL: %0s beat %0d was withdrawn or changed while it waited", NAME, received);
                $fatal(1);
            end
            held <= tvalid && !ready;
            held_beat <= beat;
            if (tvalid && ready) begin
                if (received >= due) begin
                    $display("FAIL: %0s: a beat behind the last one in cycle %0d", NAME, cycle);
                    $fatal(1);
                end
                if (beat !== expected) begin
                    if (BEATS_PER_TOKEN == 0)
                        $display("FAIL: %0s beat %0d in cycle %0d: %0s %h, golden %h",
                            NAME, place, cycle, PARTS, beat, expected);
                    else
                        $display("FAIL: %0s beat %0d (token %0d) in cycle %0d: %0s %h, golden %h",
                            NAME, place, place / BEATS_PER_TOKEN, cycle, PARTS, beat, expected);
                    $fatal(1);
                end
                received <= received + 1;
            end
        end
endmodule
