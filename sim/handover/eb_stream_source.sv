// Sends the beats of a file to an AXI4-Stream, for benches: up to ``allowed`` of them, from the first one again
// behind the last one. A line of the file: a byte with tlast in its lowest bit, then tdata.
//
// In PAUSES of 256 cycles nothing is offered; a beat that is offered stays. tdata and tlast are x beside tvalid.

module eb_stream_source #(
    parameter DATA_BITS = 64,
    parameter BEATS = 1,
    parameter FILE = "tokens.hex"
) (
    input  wire                 aclk,
    input  wire                 aresetn,
    input  wire [7:0]           pauses,
    input  wire [31:0]          seed,
    input  wire [31:0]          allowed,
    output reg  [31:0]          sent,
    output wire [DATA_BITS-1:0] tdata,
    output wire                 tlast,
    output wire                 tvalid,
    input  wire                 tready
);
    reg [DATA_BITS+7:0] beats [0:BEATS-1];
    initial $readmemh(FILE, beats);

    wire go;
    eb_pauses random(.aclk(aclk), .aresetn(aresetn), .pauses(pauses), .seed(seed), .go(go));

    reg offered = 0;
    initial sent = 0;
    assign tvalid = offered;
    assign {tlast, tdata} = offered ? beats[sent % BEATS][DATA_BITS:0] : {(DATA_BITS + 1){1'bx}};

    always @(posedge aclk)
        if (aresetn) begin
            if (offered && tready)
                sent <= sent + 1;
            if (!offered || tready)
                offered <= sent + (offered && tready) < allowed && go;
        end
endmodule
