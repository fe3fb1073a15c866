// Synchronous memory, one write port with an enable per lane and one read port; Verilog-2005.
//
// r_data shows row r_addr one cycle after r_en and holds until the next r_en. A read of the row that
// is being written returns the new lanes if TRANSPARENT, the old row otherwise. Written so that Yosys
// and Vivado infer block RAM: the memory itself is read-first, and transparency is a bypass register
// behind it. No reset; rows are undefined until written; addresses must be below DEPTH.

module eb_ram #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter ADDR_WIDTH = 1,
    parameter LANES = 1,
    parameter TRANSPARENT = 0
) (
    input  wire                  clk,
    input  wire [LANES-1:0]      w_en,
    input  wire [ADDR_WIDTH-1:0] w_addr,
    input  wire [WIDTH-1:0]      w_data,
    input  wire                  r_en,
    input  wire [ADDR_WIDTH-1:0] r_addr,
    output wire [WIDTH-1:0]      r_data
);
    localparam LANE_WIDTH = WIDTH / LANES;

    reg [WIDTH-1:0] mem [0:DEPTH-1];
    reg [WIDTH-1:0] row_q;

    always @(posedge clk) begin
        if (r_en)
            row_q <= mem[r_addr];
    end

    generate
        if (LANES == 1) begin : whole
            always @(posedge clk) begin
                if (w_en[0])
                    mem[w_addr] <= w_data;
            end
        end else begin : lanes
            integer lane;
            always @(posedge clk) begin
                for (lane = 0; lane < LANES; lane = lane + 1)
                    if (w_en[lane])
                        mem[w_addr][lane*LANE_WIDTH +: LANE_WIDTH] <= w_data[lane*LANE_WIDTH +: LANE_WIDTH];
            end
        end

        if (TRANSPARENT != 0) begin : bypass
            genvar part;
            reg [LANES-1:0] hit_q;
            reg [WIDTH-1:0] data_q;
            always @(posedge clk) begin
                if (r_en) begin
                    hit_q <= w_en & {LANES{w_addr == r_addr}};
                    data_q <= w_data;
                end
            end
            for (part = 0; part < LANES; part = part + 1) begin : select
                assign r_data[part*LANE_WIDTH +: LANE_WIDTH] = hit_q[part]
                    ? data_q[part*LANE_WIDTH +: LANE_WIDTH]
                    : row_q[part*LANE_WIDTH +: LANE_WIDTH];
            end
        end else begin : direct
            assign r_data = row_q;
        end
    endgenerate
endmodule
